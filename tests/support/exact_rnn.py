"""nn.RNN written out in float64, element by element of the batch, for cases of a benchmark."""

import torch


def exact(case, arrays):
    """Results in float64, step by step and gradients by differentiating that."""
    leaves = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in {"x": arrays.x, "h0": arrays.h0, **arrays.weights}.items()
    }
    activation = getattr(torch, case.nonlinearity)
    steps, rows = leaves["x"].shape[0], leaves["x"]
    lengths = [steps] * case.B if arrays.lengths is None else arrays.lengths.tolist()
    last = []
    for layer in range(case.layers):
        directions = []
        for suffix in [f"l{layer}", f"l{layer}_reverse"][: case.directions]:
            w_ih, w_hh, b_ih, b_hh = (
                leaves[f"{kind}_{suffix}"]
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            sequences, ends = [], []
            for b, length in enumerate(lengths):
                h, y = leaves["h0"][len(last), b], [torch.zeros(case.H).double()] * steps
                order = range(length)
                for t in reversed(order) if suffix.endswith("reverse") else order:
                    h = y[t] = activation(w_ih @ rows[t, b] + b_ih + w_hh @ h + b_hh)
                sequences.append(torch.stack(y))
                ends.append(h)
            directions.append(torch.stack(sequences, 1))
            last.append(torch.stack(ends))
        rows = torch.cat(directions, -1)
    outputs = (rows, torch.stack(last))
    grads = (torch.tensor(arrays.grad_y).double(), torch.tensor(arrays.grad_h_n).double())
    found = torch.autograd.grad(outputs, tuple(leaves.values()), grads)
    named = {"y": outputs[0].detach(), "h_n": outputs[1].detach()}
    if case.trains:
        named |= {f"grad {name}": grad for name, grad in zip(leaves, found, strict=True)}
    return {name: value.numpy() for name, value in named.items()}
