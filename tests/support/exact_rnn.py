"""torch's recurrent layers in float64, sequence by sequence, for cases of a benchmark."""

import torch


def exact(case, arrays):
    """Results in float64, step by step and gradients by differentiating that."""
    names = ["h", "c"] if case.cell == "lstm" else ["h"]
    given = {"x": arrays.x} | {
        f"{name}0": state for name, state in zip(names, arrays.hx, strict=True)
    }
    leaves = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in {**given, **arrays.weights}.items()
    }
    steps, rows = leaves["x"].shape[0], leaves["x"]
    lengths = [steps] * case.B if arrays.lengths is None else arrays.lengths.tolist()
    last = []
    for layer in range(case.layers):
        directions = []
        for suffix in [f"l{layer}", f"l{layer}_reverse"][: case.directions]:
            w_ih, w_hh, b_ih, b_hh, w_hr = (
                leaves.get(f"{kind}_{suffix}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            sequences, ends = [], []
            for b, length in enumerate(lengths):
                states = [leaves[f"{name}0"][len(last), b] for name in names]
                y = [torch.zeros_like(states[0])] * steps
                order = range(length)
                for t in reversed(order) if suffix.endswith("reverse") else order:
                    zx, zh = w_ih @ rows[t, b] + b_ih, w_hh @ states[0] + b_hh
                    states = STEPS[case.cell](case, zx, zh, *states)
                    if w_hr is not None:
                        states[0] = w_hr @ states[0]
                    y[t] = states[0]
                sequences.append(torch.stack(y))
                ends.append(states)
            directions.append(torch.stack(sequences, 1))
            last.append([torch.stack(state) for state in zip(*ends, strict=True)])
        rows = torch.cat(directions, -1)
    outputs = (rows, *map(torch.stack, zip(*last, strict=True)))
    grads = [torch.tensor(grad).double() for grad in (arrays.grad_y, *arrays.grad_hn)]
    found = torch.autograd.grad(outputs, tuple(leaves.values()), grads)
    named = dict(zip(["y", *(f"{name}_n" for name in names)], outputs, strict=True))
    if case.trains:
        named |= {f"grad {name}": grad for name, grad in zip(leaves, found, strict=True)}
    return {name: value.detach().numpy() for name, value in named.items()}


def _rnn(case, zx, zh, h):
    return [getattr(torch, case.nonlinearity)(zx + zh)]


def _lstm(case, zx, zh, h, c):
    """The gates in the order of the formulas of nn.LSTM's documentation."""
    i, f, g, o = (zx + zh).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def _gru(case, zx, zh, h):
    """The gates in the order of the formulas of nn.GRU's documentation."""
    (r, z, _), (_, _, n) = (zx + zh).chunk(3), zx.chunk(3)
    n = torch.tanh(n + torch.sigmoid(r) * zh.chunk(3)[2])
    z = torch.sigmoid(z)
    return [(1 - z) * n + z * h]


STEPS = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}
