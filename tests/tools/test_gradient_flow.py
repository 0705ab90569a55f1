"""Protects gradient flow: the gradient norm of every state, against autograd on kept states."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit

T, B, I, H = 6, 4, 3, 5
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def step_by_step(rnn, x, lengths, loss):
    """`[L, D, T]` by torch's autograd: every state is a tensor of its own."""
    D = 2 if rnn.bidirectional else 1
    activation = torch.tanh if rnn.nonlinearity == "tanh" else torch.relu
    states, inputs, ends = [], [list(x[: lengths[b], b]) for b in range(B)], []
    for layer in range(rnn.num_layers):
        outputs = [[[] for _ in range(B)] for _ in range(D)]
        for d in range(D):
            suffix = f"l{layer}" + ("_reverse" if d else "")
            w_ih, w_hh, b_ih, b_hh = (
                getattr(rnn, f"{kind}_{suffix}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            for b in range(B):
                h, found = torch.zeros(H, dtype=x.dtype), {}
                order = range(lengths[b]) if d == 0 else reversed(range(lengths[b]))
                for t in order:
                    h = activation(w_ih @ inputs[b][t] + b_ih + w_hh @ h + b_hh)
                    h.retain_grad()
                    found[t] = h
                outputs[d][b] = [found[t] for t in range(lengths[b])]
                ends.append(h)
        states.append(outputs)
        inputs = [
            [torch.cat([outputs[d][b][t] for d in range(D)]) for t in range(lengths[b])]
            for b in range(B)
        ]
    rows = torch.stack([inputs[b][t] for t in range(T) for b in range(B) if t < lengths[b]])
    loss(rows, torch.stack(ends).view(rnn.num_layers * D, B, H)).backward()
    return torch.tensor(
        [
            [
                [
                    sum(
                        float(states[layer][d][b][t].grad.square().sum())
                        for b in range(B)
                        if t < lengths[b]
                    )
                    ** 0.5
                    for t in range(T)
                ]
                for d in range(D)
            ]
            for layer in range(rnn.num_layers)
        ],
        dtype=torch.float64,
    )


LOSSES = {
    "rows": lambda y, h: (y * y.detach().cos()).sum(),
    "last": lambda y, h: (h * h.detach().sin()).sum(),
    "both": lambda y, h: y.square().sum() + h.exp().sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"nonlinearity": "relu"}],
    ids=str,
)
@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_it_is_what_autograd_finds(options, packed, loss, backend):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lengths = [6, 4, 4, 1] if packed else [T] * B
    given = pack_padded_sequence(x, torch.tensor(lengths)) if packed else x

    def of_output(output):
        y, h = output
        return LOSSES[loss](y.data if packed else y.flatten(0, 1), h)

    flow = rnnjit.gradient_flow(rnnjit.compile(rnn, backend=backend), given, loss=of_output)
    expected = step_by_step(copy.deepcopy(rnn), x, lengths, LOSSES[loss])
    torch.testing.assert_close(flow.norms[""], expected, **CLOSE)


def test_vanishing_and_exploding_gradients_are_seen():
    rnn = nn.RNN(1, H, nonlinearity="relu", bias=False)
    norms = {}
    for scale in (0.5, 2.0):
        with torch.no_grad():
            rnn.weight_ih_l0.fill_(1)
            rnn.weight_hh_l0.copy_(scale * torch.eye(H))
        flow = rnnjit.gradient_flow(rnn, torch.ones(9, 1, 1), loss=lambda out: out[1].sum())
        norms[scale] = flow.norms[""][0, 0]
    # Each step back multiplies by the one weight: scale ** (8 - t) * sqrt(H).
    steps = torch.arange(8, -1, -1)
    for scale, found in norms.items():
        torch.testing.assert_close(found, scale**steps * H**0.5)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.RNN(I, H, 2, dropout=0.5), nn.Linear(H, 1)
        self.unused = nn.RNN(I, H)

    def forward(self, x):
        y, _ = self.encoder(input=x)
        again, _ = self.encoder(x)
        return self.head(y[-1]) + again.sum()


def test_a_model_is_followed_and_left_as_it_was():
    model = rnnjit.compile(Model())
    x, state = torch.randn(T, B, I), torch.get_rng_state()
    flow = rnnjit.gradient_flow(model, x)
    assert {name: norms.shape for name, norms in flow.norms.items()} == {"encoder": (2, 1, T)}
    # The loss sees the last step of the first call alone, through the layer's recurrence.
    assert (flow.norms["encoder"] > 0).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert "forward" not in vars(model.encoder)
    assert str(flow).startswith("encoder, layer 0: ")


def test_a_plot_shows_every_layer_and_direction():
    pytest.importorskip("matplotlib").use("Agg")
    flow = rnnjit.gradient_flow(nn.RNN(I, H, 2, bidirectional=True), torch.randn(T, B, I))
    axes = flow.plot()
    assert len(axes.get_lines()) == 4
    for line, norms in zip(axes.get_lines(), flow.norms[""].flatten(0, 1), strict=True):
        assert line.get_ydata().tolist() == norms.tolist()
    assert axes.get_yscale() == "log"
    assert flow.plot(axes) is axes


def test_what_cannot_be_followed():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got int"):
        rnnjit.gradient_flow(1)
    with pytest.raises(ValueError, match=r"calls no nn\.RNN"):
        rnnjit.gradient_flow(nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="does not depend"):
        rnnjit.gradient_flow(nn.RNN(I, H), torch.zeros(T, B, I), loss=lambda out: torch.zeros(()))
