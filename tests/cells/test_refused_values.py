"""Protects the errors of steps that depend on the batch, on seeds, on Python's own numbers."""

import random

import pytest
import torch
from torch import nn
from user_cells import Kept

import rnnjit
from rnnjit.cells import Cell, trace_cell
from rnnjit.errors import CellError


class Refused(Cell):
    def __init__(self):
        super().__init__(3, 5)
        self.rows = nn.Parameter(torch.zeros(8, 5))
        self.inner = nn.Tanh()


class Hooked(Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Tanh()

    def forward(self, x, h):
        return self.inner(self.ih(x) + self.hh(h))


def parameters_of_each_row(self, x, h):
    return torch.tanh(self.hh(h) + self.ih(x)) * self.rows[: len(x)]


def parameters_of_each_row_of_x(self, x, h):
    return torch.tanh(self.hh(h) + torch.tanh(self.ih(x) + self.rows[: len(x)]))


def bound_that_is_nan(self, x, h):
    return torch.clamp(self.hh(h) + self.ih(x), max=float("nan"))


def seeds(self, x, h):
    torch.manual_seed(3)
    return torch.tanh(h + self.ih(x) + torch.randn_like(h))


def draws_a_number_in_python(self, x, h):
    return torch.tanh(h * random.random() + self.ih(x))


def of_a_batch_of_one(self, x, h):
    return torch.tanh(self.ih(x) + h) * (0.5 if len(h) == 1 else 1.0)


def of_one_row_of_x(self, x, h):
    return torch.tanh(h + torch.tanh(self.ih(x) * (2.0 if len(x) == 1 else 1.0)))


def of_too_many_states(self, x, h, c):
    return h, c


def of_one_argument(self, x):
    return self.ih(x)


def changes_the_mode(self, x, h):
    self.eval()
    return torch.tanh(h + self.ih(x))


#: For each step the operation that its error names, why, and what to do.
REFUSED = {
    parameters_of_each_row: ("Tensor.mul", "not the same in each row", "vectors of [H]"),
    parameters_of_each_row_of_x: ("what is computed from x", "mixes rows", "each row alone"),
    bound_that_is_nan: ("torch.clamp", "a bound that is NaN", "numbers, or None"),
    seeds: ("the step", "seeds torch's random generator", "Generator of the cell's own"),
    draws_a_number_in_python: ("the step", "when it runs again", "drawn, counted or timed"),
    of_a_batch_of_one: ("the step", "for another batch size", "no number from the batch size"),
    of_one_row_of_x: ("the step", "for another batch size", "no number from the batch size"),
    of_too_many_states: ("the step", "1 states (h): missing", "def forward(self, x, h)"),
    of_one_argument: ("the step", "too many positional arguments", "def forward(self, x, h)"),
    changes_the_mode: ("self.training", "is set in the step", "as a state"),
}


@pytest.mark.parametrize("step", REFUSED, ids=lambda step: step.__name__)
def test_what_is_wrong_is_named(step):
    cell = type("Mine", (Refused,), {"forward": step})()
    before = torch.get_rng_state()
    with pytest.raises(CellError) as caught:
        trace_cell(cell)
    operation, why, remedy = REFUSED[step]
    assert caught.value.operation == operation
    assert why in caught.value.why
    assert remedy in caught.value.remedy
    assert caught.value.where.startswith("test_refused_values.py:")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_on_gradients_are_refused_when_they_come(kind):
    fast = rnnjit.compile(rnnjit.Recurrent(Hooked(3, 5)), inplace=True, backend=Kept())
    x = torch.randn(2, 2, 3)
    first = fast(x)[0]
    for module, named in ((fast.cells[0], "the cell"), (fast.cells[0].inner, "self.inner")):
        hook = getattr(module, kind)(lambda *given: None)
        with pytest.raises(CellError, match=f"{named} has a backward hook"):
            fast(x)
        hook.remove()
    hook = fast.cells[0].register_forward_hook(lambda module, args, output: 2 * output)
    doubled = rnnjit.compile(fast, backend="eager")(x)[0]
    torch.testing.assert_close(fast(x)[0], doubled)
    assert not torch.equal(doubled, first)
    hook.remove()
    assert torch.equal(fast(x)[0], first)
