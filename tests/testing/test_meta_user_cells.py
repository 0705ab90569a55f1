"""Protects the kit's strength on cells that users write: what is wrong with them must fail."""

import pytest
import torch

from rnnjit.ir import normal_form
from rnnjit.testing import RecomputeBackend
from rnnjit.testing.suite import pairs
from rnnjit.testing.user_cells import USER_CELLS, known

PAIRS = [pair for pair in pairs(quick=True) if pair.case.user_cell and not pair.case.quantized]


class Broken(RecomputeBackend):
    name = "broken"


class ParametersSwapped(Broken):
    """Takes a direction's parameters in the wrong order."""

    def forward(self, layer, rows, x, hx, weights, keep):
        count, own = layer.weights_per_direction, list(weights)
        for last in range(count, len(own) + 1, count):
            first = last - len(layer.cell.parameters)
            own[first:last] = own[first:last][::-1]
        return super().forward(layer, rows, x, hx, own, keep)


class ParametersOfOneDirection(Broken):
    """Takes the first direction's parameters in both."""

    def forward(self, layer, rows, x, hx, weights, keep):
        count, own = layer.weights_per_direction, list(weights)
        for k in range(1, len(layer.cell.parameters) + 1):
            own[-k] = own[count - k]
        return super().forward(layer, rows, x, hx, own, keep)


class RowInputsShifted(Broken):
    """Reads every row's row inputs from the row before it."""

    def forward(self, layer, rows, x, hx, weights, keep):
        x = x.clone()
        x[1:, layer.input_size :] = x[:-1, layer.input_size :].clone()
        return super().forward(layer, rows, x, hx, weights, keep)


class ParametersGetNoGradient(Broken):
    """Sums the gradients of the parameters over all rows but the last."""

    def backward(self, layer, rows, x, hx, weights, *rest):
        grads = super().backward(layer, rows, x, hx, weights, *rest)
        count, own = layer.weights_per_direction, list(grads.weights)
        for last in range(count, len(own) + 1, count):
            for k in range(last - len(layer.cell.parameters), last):
                own[k] = None if own[k] is None else own[k] * (1 - 1 / rows.N)
        return grads._replace(weights=tuple(own))


class RowInputsGetNoGradient(Broken):
    def backward(self, layer, rows, x, *rest):
        grads = super().backward(layer, rows, x, *rest)
        if grads.x is not None:
            grads.x[:, layer.input_size :] = 0
        return grads


class InputGetsNoGradient(Broken):
    def backward(self, layer, rows, x, *rest):
        grads = super().backward(layer, rows, x, *rest)
        if grads.x is not None:
            grads.x[:, : layer.input_size] = 0
        return grads


class ExtraStateStartsAtZero(Broken):
    """Starts from zeros instead of the operand of the first step."""

    def forward(self, layer, rows, x, hx, weights, keep):
        if len(hx) > 1:
            hx = (torch.zeros_like(hx[0]), *hx[1:])
        return super().forward(layer, rows, x, hx, weights, keep)


def failed(backend, cell):
    """The checks that fail in the quick cases of a cell."""
    found = set()
    for pair in PAIRS:
        if pair.name in ("forward", "gradients") and pair.case.user_cell == cell:
            try:
                pair.check.run(backend, pair.case)
            except AssertionError:
                found.add(pair.name)
    return found


@pytest.mark.parametrize("cell", USER_CELLS)
def test_a_healthy_backend_passes(cell):
    assert not failed(RecomputeBackend(), cell)


@pytest.mark.parametrize(
    ("backend", "cell", "checks"),
    [
        (ParametersSwapped(), "leaky", {"forward", "gradients"}),
        (ParametersSwapped(), "peephole", {"forward", "gradients"}),
        (ParametersOfOneDirection(), "peephole", {"forward", "gradients"}),
        (RowInputsShifted(), "timed", {"forward", "gradients"}),
        (RowInputsShifted(), "integrator", {"forward", "gradients"}),
        (ParametersGetNoGradient(), "leaky", {"gradients"}),
        (ParametersGetNoGradient(), "peephole", {"gradients"}),
        (RowInputsGetNoGradient(), "timed", {"gradients"}),
        (RowInputsGetNoGradient(), "integrator", {"gradients"}),
        (InputGetsNoGradient(), "timed", {"gradients"}),
        (ExtraStateStartsAtZero(), "leaky", {"forward", "gradients"}),
    ],
)
def test_a_broken_backend_fails(backend, cell, checks):
    assert failed(backend, cell) == checks


def test_the_cells_have_between_them_what_torchs_lack():
    forms = {name: known(name).form for name in USER_CELLS}
    cells = {name: form.cell for name, form in forms.items()}
    assert [name for name in cells if cells[name].parameters] == ["leaky", "peephole"]
    assert [name for name in cells if cells[name].row_inputs] == ["timed", "integrator"]
    assert [name for name in cells if not cells[name].has_product] == ["integrator"]
    assert [name for name in cells if forms[name].initial is not None] == ["leaky"]
    assert [known(name).multiplies_x for name in cells] == [True, True, True, False]
    assert all(normal_form(cell).cell is cell for cell in cells.values())
