"""Protects what holds for cells with parameters, row inputs or no product, whatever the call."""

import itertools

import pytest
import torch
from own_cells import CALLS, WIDER_CELLS, agrees, close, given, stacked

from rnnjit import LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.codegen import plan, row_slices
from rnnjit.codegen.deferral import why_torch
from rnnjit.execution.recompute import Recomputing
from rnnjit.execution.segments import segments
from rnnjit.ir import LSTM
from rnnjit.reference import layer_backward, layer_forward_states
from rnnjit_numba import BACKEND, run

BY_NAME = {cell.name: cell for cell in WIDER_CELLS}
INTEGRATORS, ALL = BY_NAME["integrators"], BY_NAME["all operations"]
FLOAT = torch.float32
#: THREAD_WORK, _SYNC_WORK and STRIDED_FEATURES by which small calls are divided in every way.
COSTS = {"slices": (0, 10**9, 10**9), "strides": (0, 10**9, 1), "parts": (0, 0, 10**9)}
cells = pytest.mark.parametrize("cell", [INTEGRATORS, ALL], ids=lambda cell: cell.name)


def needs_all(layer):
    count = layer.num_directions * layer.weights_per_direction
    return Needs(True, (True,) * len(layer.cell.states), (True,) * count)


def both_passes(layer, rows, x, hx, weights, grads, backend=BACKEND):
    """Y and the last states, and the gradients."""
    output = backend.forward(layer, rows, x, hx, weights, True)
    found = backend.backward(
        *(layer, rows, x, hx, weights, LayerOutput(*output), *grads, needs_all(layer))
    )
    return [output.y, *output.h_n], [found.x, *found.hx, *found.weights]


@pytest.fixture
def divided(monkeypatch):
    """A function that has the next calls divided between some threads in some way."""
    before = torch.get_num_threads()

    def divide(threads, costs=COSTS["slices"]):
        torch.set_num_threads(threads)
        for name, value in zip(
            ("THREAD_WORK", "_SYNC_WORK", "STRIDED_FEATURES"), costs, strict=True
        ):
            for module in (plan, row_slices):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        run._forward_call.cache_clear()
        run._backward_call.cache_clear()

    yield divide
    monkeypatch.undo()
    divide(before)
    run._forward_call.cache_clear()
    run._backward_call.cache_clear()


@cells
@pytest.mark.parametrize("call", ["packed", "no input", "many rows"])
def test_no_division_of_the_work_changes_a_bit(cell, call, divided):
    case = given(call, cell, FLOAT)
    divided(1)
    expected = [*itertools.chain(*both_passes(*case))]
    for threads, costs in itertools.product((2, 3), COSTS.values()):
        divided(threads, costs)
        layer, (T, B, N, _) = case[0], case[1]
        assert run.forward_recipe(torch.float32, layer, T, B, N, threads).threads == threads
        assert run.backward_recipe(torch.float32, layer, T, B, N, threads).threads == threads
        for one, other in zip(itertools.chain(*both_passes(*case)), expected, strict=True):
            assert torch.equal(one, other)


@cells
def test_no_other_sequence_of_the_batch_changes_a_bit(cell):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("packed", cell, FLOAT)
    (y, *last), (grad_x, *grads) = both_passes(layer, rows, x, hx, weights, (grad_y, grad_h_n))
    firsts = torch.tensor([0, *rows.sizes]).cumsum(0)
    for b in range(rows.B):
        own = [int(firsts[t]) + b for t, size in enumerate(rows.sizes) if size > b]
        only = Rows(len(own), 1, len(own))
        states, ends = ([each[:, b : b + 1].contiguous() for each in s] for s in (hx, grad_h_n))
        given_grads = grad_y[own], tuple(ends)
        alone = both_passes(layer, only, x[own], tuple(states), weights, given_grads)
        assert torch.equal(alone[0][0], y[own])
        assert torch.equal(alone[1][0], grad_x[own])
        for k in range(len(hx)):
            assert torch.equal(alone[0][1 + k][:, 0], last[k][:, b])
            assert torch.equal(alone[1][1 + k][:, 0], grads[k][:, b])


@cells
@pytest.mark.parametrize("keep", [False, True])
def test_states_of_every_step(cell, keep):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("packed", cell, FLOAT)
    output = BACKEND.forward_states(layer, rows, x, hx, weights, keep)
    assert torch.equal(output.y, BACKEND.forward(layer, rows, x, hx, weights, False).y)
    wide = [t.double() for t in (x, *hx, *weights)]
    wide_hx, wide_weights = tuple(wide[1 : 1 + len(hx)]), wide[1 + len(hx) :]
    exact = layer_forward_states(layer, rows, wide[0], wide_hx, wide_weights)
    for found, expected in zip(output.states, exact.states, strict=True):
        close(found, expected, FLOAT)
    if not keep:
        return
    grad_states = tuple(torch.randn_like(each) for each in output.states)
    given_grads = grad_y, grad_h_n, grad_states
    grads = BACKEND.backward_states(
        *(layer, rows, x, hx, weights, output, *given_grads, needs_all(layer))
    )
    expected = layer_backward(
        *(layer, rows, wide[0], wide_hx, wide_weights, grad_y.double()),
        *(tuple(grad.double() for grad in grad_h_n), needs_all(layer)),
        tuple(grad.double() for grad in grad_states),
    )
    for one, other in zip(
        (grads.x, *grads.hx, *grads.weights),
        (expected.x, *expected.hx, *expected.weights),
        strict=True,
    ):
        close(one, torch.zeros_like(one).double() if other is None else other, FLOAT)


@cells
def test_gradients_that_are_not_needed_are_left_out(cell):
    layer, rows, x, hx, weights, grads = given("packed", cell, FLOAT)
    output = BACKEND.forward(layer, rows, x, hx, weights, True)
    count = layer.weights_per_direction
    # The parameters of one direction alone, then everything else.
    parameters = tuple(count - len(cell.parameters) <= i < count for i in range(2 * count))
    every = BACKEND.backward(layer, rows, x, hx, weights, output, *grads, needs_all(layer))
    for wanted in (parameters, tuple(not need for need in parameters)):
        needs = Needs(wanted is not parameters, (False,) * len(hx), wanted)
        found = BACKEND.backward(layer, rows, x, hx, weights, output, *grads, needs)
        assert (found.x is not None) == needs.x
        assert found.x is None or torch.equal(found.x, every.x)
        assert found.hx == (None,) * len(hx)
        for need, one, other in zip(wanted, found.weights, every.weights, strict=True):
            assert torch.equal(one, other) if need else one is None


@cells
def test_no_rows(cell):
    layer = LayerSpec(cell, 3, 5, 2, True)
    hx = tuple(torch.randn(2, 0, 5) for _ in cell.states)
    weights = [torch.randn(shape) for shape in layer.weight_shapes * 2]
    x = torch.empty(0, layer.features)
    outputs, grads = both_passes(
        layer, Rows(4, 0, 0), x, hx, weights, (torch.empty(0, 10), (None,) * len(hx))
    )
    assert [tuple(each.shape) for each in outputs] == [(0, 10), *[(2, 0, 5)] * len(hx)]
    assert grads[0].shape == x.shape
    for grad, shape in zip(grads[1 + len(hx) :], layer.weight_shapes * 2, strict=True):
        assert torch.equal(grad, torch.zeros(shape))


@cells
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_one_step(cell, rows, monkeypatch):
    monkeypatch.setitem(CALLS, "one step", ((1,) * rows, 5, 21, 2, True, False))
    agrees(BACKEND, cell, "one step", FLOAT)


@cells
def test_training_has_the_bits_of_both_passes(cell):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("dense", cell, FLOAT)
    expected, expected_grads = both_passes(layer, rows, x, hx, weights, (grad_y, grad_h_n))
    problem = Problem(FLOAT, "cpu", rows.T, rows.B, rows.N, False, True)
    record, gradients = BACKEND.training(layer, problem, needs_all(layer))
    x = x.view(rows.T, rows.B, -1)
    y, last, *saved = record(x, hx, tuple(weights))
    grads = gradients(x, hx, weights, (y, *itertools.chain(*saved)), grad_y, grad_h_n)
    found = [y.flatten(0, 1), *last, grads.x.flatten(0, 1), *grads.hx, *grads.weights]
    for one, other in zip(found, [*expected, *expected_grads], strict=True):
        assert torch.equal(one, other)


@cells
def test_a_pass_that_recomputes(cell, monkeypatch):
    monkeypatch.setitem(CALLS, "long", ((100,) * 20, 8, 24, 1, True, False))
    layer, rows, x, hx, weights, grads = given("long", cell, FLOAT)
    assert len(segments(layer, rows)) > 1
    expected, expected_grads = both_passes(layer, rows, x, hx, weights, grads)
    found, found_grads = both_passes(
        layer, rows, x, hx, weights, grads, backend=Recomputing(BACKEND)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found_grads, expected_grads, strict=True):
        close(one, other.double(), FLOAT)


@pytest.mark.full
def test_a_stack_of_cells_with_parameters_by_shortcut_and_steps():
    cell = BY_NAME["peephole"]
    spec, x, hx, weights, y, h_n = stacked(BACKEND, cell)
    step, now = BACKEND.stepper(spec, FLOAT, x.shape[1]), hx
    for frame, whole in zip(x, y, strict=True):
        after, out = tuple(torch.empty_like(state) for state in now), torch.empty_like(whole)
        step(frame, now, after, out, weights)
        assert torch.equal(out, whole)
        now = after
    for stepped, whole in zip(now, h_n, strict=True):
        assert torch.equal(stepped, whole)


@cells
def test_stacks_with_row_inputs_have_no_shortcut(cell):
    spec, problem = RNNSpec(3, 4, cell=cell), Problem(FLOAT, "cpu", 5, 2, 10, False, False)
    assert BACKEND.shortcut(spec, problem, (5, 2, 4)) is None
    assert BACKEND.cell_shortcut(spec, problem._replace(T=1, N=2)) is None
    assert BACKEND.stepper(spec, FLOAT, 2) is None


def test_programs_are_of_cells_with_neither():
    assert BACKEND.why_not_build(LSTM) == []
    parameters, row_inputs, product = BACKEND.why_not_build(INTEGRATORS)
    assert "parameters (tau)" in parameters
    assert "row inputs (span, drive)" in row_inputs
    assert "no recurrent product" in product


def test_cells_without_an_operator_are_not_left_to_torch():
    problem = Problem(FLOAT, "cpu", 1, 64, 64, False, False)
    assert why_torch(RNNSpec(1024, 1024, cell=LSTM), problem)
    assert not why_torch(RNNSpec(1024, 1024, cell=BY_NAME["peephole"]), problem)
