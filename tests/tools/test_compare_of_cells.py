"""Protects `rnnjit.compare` of users' cells, beside the cells' own runs."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit.testing import RecomputeBackend


class Coupled(rnnjit.Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, 3, ("h", "c"))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x, h, c):
        f, g, o = (self.ih(x) + self.hh(h)).chunk(3, -1)
        c = torch.lerp(g.tanh(), c, f.sigmoid())
        return o.sigmoid() * c.tanh(), c


class Noisy(rnnjit.Cell):
    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h)) + 0.5 * torch.randn_like(h)


class Rounding(rnnjit.Cell):
    """It names a dtype, so that it does not run in float64."""

    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h.float()))


class Offset(RecomputeBackend):
    """Adds to every output."""

    name = "offset"

    def forward(self, *args):
        y, *others = super().forward(*args)
        return type(super().forward(*args))(y + 0.25, *others)


@pytest.fixture
def plain(monkeypatch):
    found = {"plain": RecomputeBackend(), "offset": Offset(), "eager": rnnjit.backends()["eager"]}
    found["plain"].name = "plain"
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)


def mask():
    reset = torch.zeros(4, 3, dtype=torch.bool)
    reset[2, 1] = True
    return reset


STATE = torch.randn(1, 3, 6)
CALLS = {
    "dense": ((torch.randn(4, 3, 5),), {}, "T=4 B=3"),
    "hx": ((torch.randn(4, 3, 5), (STATE, STATE)), {}, "T=4 B=3"),
    "unbatched": ((torch.randn(4, 5),), {}, "T=4 B=1"),
    "packed": ((pack_sequence([torch.randn(n, 5) for n in (3, 2)]),), {}, "T=3 B=2 packed, 5 rows"),
    "resets": ((torch.randn(4, 3, 5),), {"reset": mask()}, "T=4 B=3"),
}


@pytest.mark.parametrize(("inputs", "named", "call"), CALLS.values(), ids=CALLS)
def test_a_call_of_a_cell_on_every_backend(plain, inputs, named, call):
    module = rnnjit.compile(rnnjit.Recurrent(Coupled(5, 6)))
    compared = rnnjit.compare(module, *inputs, rounds=1, **named)
    (found,) = compared.calls.values()
    right, wrong = found.results
    assert found.eager.name == "Coupled"
    assert found.exact == "a float64 run"
    assert max(found.eager.values_error, right.values_error) < 1e-6
    assert max(found.eager.gradients_error, right.gradients_error) < 1e-5
    assert wrong.values_error > 0.2
    assert found.speedup(right)[0] > 0
    lines = str(compared).splitlines()
    assert lines[0] == f"Coupled(5, 6); {call}, float32"
    assert "Coupled: the cell's own forward, step by step, which" in " ".join(lines)
    assert "x Coupled" in compared._repr_html_()


def test_a_model_of_several_layers_that_is_not_compiled(plain):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = nn.GRU(5, 4), rnnjit.Recurrent(Noisy(4, 6), 2)

        def forward(self, x):
            return self.above(self.below(x)[0], return_states=True)

    model = Model().requires_grad_(False)
    found = rnnjit.compare(model, torch.randn(4, 3, 5), rounds=1)
    below, above = found.calls.values()
    assert (list(found.calls), above.spec.num_layers) == (["below", "above"], 2)
    assert [each.eager.name for each in (below, above)] == ["nn.GRU", "Noisy"]
    assert above.auto_both == above.auto_forward == "plain"
    assert above.results[0].values_error < 1e-6


@pytest.mark.parametrize(
    ("cell", "why"), [(Noisy, "draws random numbers"), (Rounding, "does not run in float64")]
)
def test_what_errors_are_where_no_float64_run_tells(plain, cell, why):
    compared = rnnjit.compare(rnnjit.Recurrent(cell(5, 6)), torch.randn(4, 3, 5), rounds=1)
    (found,) = compared.calls.values()
    right, wrong = found.results
    assert found.eager.values_error == 0.0
    assert right.values_error < 1e-6 < 0.2 < wrong.values_error
    assert why in " ".join(str(compared).split())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_a_hook_computes(plain):
    module = nn.utils.weight_norm(rnnjit.Recurrent(Coupled(5, 6)), "weight_hh_l0")
    (found,) = rnnjit.compare(module, torch.randn(4, 3, 5), rounds=2).calls.values()
    assert found.exact == "a float64 run"
    assert found.results[0].gradients_error < 1e-5


def test_a_cell_that_is_not_compiled_raises(plain):
    class Sums(rnnjit.Cell):
        def forward(self, x, h):
            return torch.tanh(self.ih(x) + h.cumsum(-1))

    with pytest.raises(rnnjit.CellError, match="cumsum"):
        rnnjit.compare(rnnjit.Recurrent(Sums(5, 6)), torch.randn(4, 3, 5), rounds=1)


def test_nothing_changes(plain):
    model, x = rnnjit.Recurrent(Noisy(5, 6)), torch.randn(4, 3, 5)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    rnnjit.compare(model, x, rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert model.training
