"""Protects the Numba backend on cells of any form, and its reasons to decline others."""

import pytest
import torch
from covered import in_full, in_turn
from own_cells import (
    CALLS,
    CALLS_WITHOUT_INPUT,
    CELLS,
    DECLINED,
    WIDER_CELLS,
    accepts_what_it_should,
    agrees,
    given,
    stacked,
)
from torch import nn

import rnnjit
from rnnjit import LayerSpec, Rows
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.plan import Plan
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
from rnnjit_numba import BACKEND, recipes
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.tile_shapes import TileShape, Tiling

DTYPES = [torch.float32, torch.float64]
#: Cells of forms that no other test of `make test` compiles.
KEPT = {"parts first", "three states", "constant to gradients"}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("cell", "dtype"),
    # The conformance kit has the first two, and cells as users write them.
    [
        row if row.values[0].name in KEPT else pytest.param(*row.values, marks=pytest.mark.full)
        for row in in_full(CELLS[:2], DTYPES) + in_turn(CELLS[2:], DTYPES)
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_cells_of_ones_own_agree_with_the_reference(cell, call, dtype):
    agrees(BACKEND, cell, call, dtype)


def wider_cells():
    """Each of `WIDER_CELLS` with both element types: `QUICK` ones with one in `make test`."""
    return [
        row if row.values[0].name in QUICK else pytest.param(*row.values, marks=pytest.mark.full)
        for row in in_turn(WIDER_CELLS, DTYPES)
    ]


#: Those that the tests of bits and the sweep of guarded memory compile anyway.
QUICK = {"integrators", "all operations"}


@pytest.mark.parametrize("call", CALLS | CALLS_WITHOUT_INPUT)
@pytest.mark.parametrize(
    ("cell", "dtype"), wider_cells(), ids=lambda value: getattr(value, "name", str(value))
)
def test_parameters_row_inputs_and_no_product_agree_with_the_reference(cell, call, dtype):
    agrees(BACKEND, cell, call, dtype)


@pytest.mark.parametrize("cell", [CELLS[2], LSTM, GRU, CELLS[6]], ids=lambda cell: cell.name)
def test_a_stack_by_shortcut_steps_and_layers(cell):
    spec, x, hx, weights, y, h_n = stacked(BACKEND, cell)
    B = x.shape[1]
    step, now = BACKEND.stepper(spec, torch.float32, B), hx
    for frame, whole in zip(x, y, strict=True):
        after, out = tuple(torch.empty_like(state) for state in now), torch.empty(B, 11)
        step(frame, now, after, out, weights)
        assert torch.equal(out, whole)
        now = after
    for stepped, whole in zip(now, h_n, strict=True):
        assert torch.equal(stepped, whole)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("T", "lengths"), [(1300, [1300]), (400, [400] * 5), (600, [600, 480, 3])])
def test_input_projections_of_several_windows(make, T, lengths):
    layer, B = make(3, 64).double(), len(lengths)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    rows = sum(lengths)
    spec, cut = LayerSpec(LSTM, 3, 64, 1, True), Plan(1, 1, B, 1, 1, hoist=True)
    recipe = recipes.forward(
        *(Kind(torch.float64, LSTM), spec, Rows(T, B, rows), cut, Tiling(TileShape(4, 4)))
    )
    window = recipe.block[ForwardArguments._fields.index("window")]
    assert window < rows / 2
    if len(set(lengths)) > 1:
        x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
    fast = rnnjit.compile(layer, backend="numba")
    expected, before = layer(x), torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            y, h_n = fast(x)
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(y, expected[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(h_n, expected[1], rtol=1e-11, atol=1e-12)


def test_cells_do_not_share_kernels():
    layer, rows, x, hx, weights, _ = given("dense", RNN_TANH, torch.float32)
    found = {}
    for cell in (RNN_TANH, RNN_RELU, *(cell for cell in CELLS[:-1] if cell.is_elman)):
        own = LayerSpec(cell, *CALLS["dense"][1:5])
        found[cell] = BACKEND.forward(own, rows, x, hx, weights, False).y
    assert len({y.numpy().tobytes() for y in found.values()}) == len(found)
    assert torch.equal(BACKEND.forward(layer, rows, x, hx, weights, False).y, found[RNN_TANH])


@pytest.mark.parametrize(("cell", "lacking"), DECLINED)
def test_other_cells_are_declined_in_words(cell, lacking):
    reasons = BACKEND.why_not_cell(cell)
    assert len(reasons) == len(lacking)
    for words, reason in zip(lacking, reasons, strict=True):
        assert words in reason


def test_what_is_accepted():
    accepts_what_it_should(BACKEND)
