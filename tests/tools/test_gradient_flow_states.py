"""Protects gradient flow of nn.LSTM and nn.GRU, against autograd on formulas written out."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit

T, B, I, H = 5, 3, 3, 4
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def lstm(zx, zh, w_hr, h, c):
    i, f, g, o = (zx + zh).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    c.retain_grad()
    h = o.sigmoid() * c.tanh()
    return h if w_hr is None else w_hr @ h, c


def gru(zx, zh, w_hr, h):
    (r, z, n), (zr, zz, zn) = zx.chunk(3), zh.chunk(3)
    r, z = (r + zr).sigmoid(), (z + zz).sigmoid()
    n = (n + r * zn).tanh()
    return ((1 - z) * n + z * h,)


def step_by_step(rnn, x, lengths, loss):
    """`[S][L, D, T]` by torch's autograd: every state is a tensor of its own."""
    D, step = (2 if rnn.bidirectional else 1), (lstm if isinstance(rnn, nn.LSTM) else gru)
    sizes = (rnn.proj_size or H, H) if step is lstm else (H,)
    inputs = [list(x[: lengths[b], b]) for b in range(B)]
    squares = torch.zeros(len(sizes), rnn.num_layers, D, T, dtype=x.dtype)
    kept, ends = [], []
    for layer in range(rnn.num_layers):
        outputs = [[{} for _ in range(B)] for _ in range(D)]
        for d in range(D):
            suffix = f"l{layer}" + ("_reverse" if d else "")
            w_ih, w_hh, b_ih, b_hh, w_hr = (
                getattr(rnn, f"{kind}_{suffix}", None)
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            for b in range(B):
                states = [torch.zeros(size, dtype=x.dtype) for size in sizes]
                for t in range(lengths[b]) if d == 0 else reversed(range(lengths[b])):
                    zx, zh = w_ih @ inputs[b][t] + b_ih, w_hh @ states[0] + b_hh
                    states = step(zx, zh, w_hr, *states)
                    states[0].retain_grad()
                    kept += [((s, layer, d, t), state) for s, state in enumerate(states)]
                    outputs[d][b][t] = states[0]
                ends.append(states)
        inputs = [
            [torch.cat([outputs[d][b][t] for d in range(D)]) for t in range(lengths[b])]
            for b in range(B)
        ]
    rows = torch.stack([inputs[b][t] for t in range(T) for b in range(B) if t < lengths[b]])
    loss(rows, [torch.stack(state) for state in zip(*ends, strict=True)]).backward()
    for place, state in kept:
        if state.grad is not None:
            squares[place] += state.grad.square().sum()
    return squares.sqrt()


LOSSES = {
    "rows": lambda y, ends: (y * y.detach().cos()).sum(),
    "last": lambda y, ends: sum((end.exp() * (k + 1)).sum() for k, end in enumerate(ends)),
}


@pytest.mark.parametrize(
    ("kind", "options", "packed", "loss", "backend"),
    [
        (nn.LSTM, {}, False, "rows", "auto"),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, True, "last", "eager"),
        (nn.LSTM, {"num_layers": 2}, False, "last", "eager"),
        (nn.GRU, {"num_layers": 2, "bidirectional": True}, True, "rows", "auto"),
        (nn.GRU, {}, False, "last", "eager"),
    ],
    ids=str,
)
def test_it_is_what_autograd_finds(kind, options, packed, loss, backend):
    torch.manual_seed(0)
    rnn = kind(I, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lengths = [5, 3, 1] if packed else [T] * B
    given = pack_padded_sequence(x, torch.tensor(lengths)) if packed else x

    def of_output(output):
        y, ends = output
        ends = ends if isinstance(ends, tuple) else (ends,)
        ends = [end.flatten(0, 1) for end in ends]
        return LOSSES[loss](y.data if packed else y.flatten(0, 1), ends)

    module = rnn if backend == "auto" else rnnjit.compile(rnn, backend=backend)
    # Without any gradient of its own, too: the states need theirs all the same.
    rnn.requires_grad_(backend == "auto")
    flow = rnnjit.gradient_flow(module, given, loss=of_output)
    names = ("h", "c") if kind is nn.LSTM else ("h",)
    assert tuple(flow.states[""]) == names
    expected = step_by_step(rnn.requires_grad_(), x, lengths, LOSSES[loss])
    torch.testing.assert_close([flow.states[""][name] for name in names], list(expected), **CLOSE)
    assert flow.norms[""] is flow.states[""]["h"]


def test_the_error_carousel_keeps_a_gradient():
    # With f = 1 and h cut off from the recurrence, dL/dc_t is the same at every step:
    # L = sum of c_T, and c_T = c_t + later inputs.
    lstm = nn.LSTM(1, H, dtype=torch.float64)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.bias_ih_l0[H : 2 * H] = 1e3
    flow = rnnjit.gradient_flow(lstm, torch.ones(9, 2, 1).double(), loss=lambda o: o[1][1].sum())
    of_c = flow.states[""]["c"]
    torch.testing.assert_close(of_c, torch.full((1, 1, 9), (2 * H) ** 0.5).double())
    assert not flow.norms[""].any()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(I, H, 2), nn.RNN(H, H)

    def forward(self, x, **options):
        return self.decoder(self.encoder(x, **options)[0])[0]


def test_a_model_of_several_kinds():
    model, x = Model(), torch.randn(T, B, I)
    flow = rnnjit.gradient_flow(model.requires_grad_(False), x)
    assert {path: list(states) for path, states in flow.states.items()} == {
        "encoder": ["h", "c"],
        "decoder": ["h"],
    }
    lines = str(flow).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("encoder, layer 0, h", "encoder, layer 0, c"),
        *("encoder, layer 1, h", "encoder, layer 1, c", "decoder, layer 0"),
    ]


def test_initial_states_stay_as_they_are():
    hx = torch.zeros(1, B, H), torch.zeros(1, B, H)
    rnnjit.gradient_flow(nn.LSTM(I, H), torch.randn(T, B, I), hx)
    assert not any(state.requires_grad for state in hx)


def test_a_plot_names_the_states():
    pytest.importorskip("matplotlib").use("Agg")
    axes = rnnjit.gradient_flow(nn.LSTM(I, H), torch.randn(T, B, I)).plot()
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["RNN layer 0 h", "RNN layer 0 c"]
    assert axes.get_ylabel() == "norm of dL/dh_t, dL/dc_t"


@pytest.mark.parametrize(
    ("argument", "value"), [("reset", torch.zeros(T, B) > 0), ("return_states", True)]
)
def test_arguments_that_it_does_not_follow(argument, value):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnnjit.compile(nn.RNN(I, H))

        def forward(self, x):
            return self.rnn(x, **{argument: value})[0]

    with pytest.raises(TypeError, match=f"does not follow calls with {argument}"):
        rnnjit.gradient_flow(Calls(), torch.randn(T, B, I))
