"""Protects the TVM backend on cells with parameters, row inputs or no recurrent product."""

import math

import pytest
import torch
from own_cells import CALLS, CALLS_WITHOUT_INPUT, WIDER_CELLS, agrees, close, given
from torch.nn.utils.rnn import pack_sequence

from rnnjit import LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.reference import layer_backward, layer_forward, layer_forward_states
from rnnjit_tvm import BACKEND

f32, f64 = torch.float32, torch.float64
NAMED = {cell.name: cell for cell in WIDER_CELLS}
#: What `make test` compiles. The first has no product, the second zx and zh in sums; both have
#: parameters, row inputs and two states.
INTEGRATORS, OPERATIONS = (NAMED["integrators"], f64), (NAMED["all operations"], f32)
QUICK = [INTEGRATORS, OPERATIONS]
quick = pytest.mark.parametrize(
    ("cell", "dtype"), QUICK, ids=lambda value: getattr(value, "name", str(value))
)


EVERY = [
    pytest.param(cell, dtype, marks=() if (cell, dtype) in QUICK else pytest.mark.full)
    for cell in WIDER_CELLS
    for dtype in (f32, f64)
]


def all_needs(layer):
    weights = layer.weights_per_direction * layer.num_directions
    return Needs(True, (True,) * len(layer.cell.states), (True,) * weights)


def flat(grads):
    return [grads.x, *grads.hx, *grads.weights]


def wide(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


@pytest.mark.parametrize("call", [*CALLS, *CALLS_WITHOUT_INPUT])
@pytest.mark.parametrize(
    ("cell", "dtype"), EVERY, ids=lambda value: getattr(value, "name", str(value))
)
def test_layers_agree_with_the_reference(cell, call, dtype):
    agrees(BACKEND, cell, call, dtype)


@quick
def test_one_step_agrees_with_the_reference(cell, dtype, monkeypatch):
    monkeypatch.setitem(CALLS, "one step", ((1,) * 5, 4, 18, 2, True, False))
    agrees(BACKEND, cell, "one step", dtype)


@quick
def test_no_sequences_have_zero_gradients(cell, dtype):
    layer, rows = LayerSpec(cell, 4, 18, 2, True), Rows(3, 0, 0)
    x, h = torch.empty(0, layer.features, dtype=dtype), torch.empty(2, 0, 18, dtype=dtype)
    hx = (h,) * len(cell.states)
    weights = [torch.randn(shape, dtype=dtype) for shape in layer.weight_shapes * 2]
    output = BACKEND.forward(layer, rows, x, hx, weights, True)
    assert output.y.shape == (0, 36)
    grads = BACKEND.backward(
        *(layer, rows, x, hx, weights, output), output.y, output.h_n, all_needs(layer)
    )
    assert grads.x.shape == x.shape
    for grad, weight in zip(grads.weights, weights, strict=True):
        assert torch.equal(grad, torch.zeros_like(weight))


def everything(cell, dtype, lengths, packed, threads):
    """The outputs and gradients of x, by sequences, and the weights' of two directions."""
    layer = LayerSpec(cell, 5, 37, 2, True)

    def random(seed, *shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    # Sequence b is the same in every call.
    weights = [0.2 * random(n, *shape) for n, shape in enumerate(layer.weight_shapes * 2)]
    xs = [random(100 + b, 13, layer.features)[:n] for b, n in enumerate(lengths)]
    grads = [random(200 + b, 13, 74)[:n] for b, n in enumerate(lengths)]
    hx = tuple(
        torch.cat([random(300 + b + 10 * k, 2, 1, 37) for b in range(len(lengths))], 1)
        for k in range(len(cell.states))
    )
    joined = pack_sequence(xs)
    sizes = joined.batch_sizes if packed else None
    rows = Rows(lengths[0], len(lengths), len(joined.data), sizes)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        output = BACKEND.forward(layer, rows, joined.data, hx, weights, True)
        found = BACKEND.backward(
            *(layer, rows, joined.data, hx, weights, output),
            *(pack_sequence(grads).data, (None,) * len(hx), all_needs(layer)),
        )
    finally:
        torch.set_num_threads(before)
    places = pack_sequence([torch.arange(n) + 100 * b for b, n in enumerate(lengths)]).data
    order = places.argsort()
    return output.y[order], found.x[order], found.weights


@quick
def test_bits_depend_on_neither_threads_nor_the_rest_of_the_batch(cell, dtype, always_teams):
    lengths = (13, 13, 9, 9, 5, 1)
    y, grad_x, weights = everything(cell, dtype, lengths, True, 1)
    for threads in (2, 3, 5):
        other = everything(cell, dtype, lengths, True, threads)
        assert torch.equal(other[0], y)
        assert torch.equal(other[1], grad_x)
        assert all(map(torch.equal, other[2], weights))
    for others, packed in (((13, 13), False), ((13, 13), True), ((13, 13, 2), True)):
        own_y, own_grad, _ = everything(cell, dtype, others, packed, 1)
        torch.testing.assert_close(own_y[:26], y[:26], rtol=0, atol=0)
        torch.testing.assert_close(own_grad[:26], grad_x[:26], rtol=0, atol=0)


@pytest.mark.parametrize("call", ["packed", "no bias, two directions"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "alone"])
@quick
def test_states_of_every_step_are_the_references(cell, dtype, call, keep):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given(call, cell, dtype)
    found = BACKEND.forward_states(layer, rows, x, hx, weights, keep)
    exact = wide(x, *hx, *weights)
    states, own = tuple(exact[1 : 1 + len(hx)]), exact[1 + len(hx) :]
    expected = layer_forward_states(layer, rows, exact[0], states, own)
    close(found.y, expected.y, dtype)
    for ours, theirs in zip(found.states, expected.states, strict=True):
        close(ours, theirs, dtype)
    if not keep:
        return
    every = tuple(0.1 * grad_y + k for k in range(1, len(hx)))
    grads = BACKEND.backward_states(
        *(layer, rows, x, hx, weights, found, grad_y, grad_h_n, every), all_needs(layer)
    )
    last, each = (tuple(wide(*given)) for given in (grad_h_n, every))
    truth = layer_backward(
        *(layer, rows, exact[0], states, own, grad_y.double(), last), all_needs(layer), each
    )
    for ours, theirs in zip(flat(grads), flat(truth), strict=True):
        close(ours, torch.zeros_like(ours).double() if theirs is None else theirs, dtype)


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [*QUICK, pytest.param(NAMED["peephole"], f32, marks=pytest.mark.full)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_shortcuts_give_the_bits_of_both_passes(cell, dtype):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("dense", cell, dtype)
    output = BACKEND.forward(layer, rows, x, hx, weights, True)
    needs, dense = all_needs(layer), (rows.T, rows.B, -1)
    grads = BACKEND.backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
    problem = Problem(dtype, "cpu", rows.T, rows.B, rows.N, False, True)
    record, gradients = BACKEND.training(layer, problem, needs)
    y, h_n, saved = record(x.view(dense), hx, tuple(weights))
    found = gradients(x.view(dense), hx, tuple(weights), (y, *saved), grad_y.view(dense), grad_h_n)
    assert torch.equal(y.flatten(0, 1), output.y)
    assert all(map(torch.equal, h_n, output.h_n))
    assert torch.equal(found.x.flatten(0, 1), grads.x)
    assert all(map(torch.equal, (*found.hx, *found.weights), (*grads.hx, *grads.weights)))
    spec = RNNSpec(layer.input_size, layer.hidden_size, cell=cell)
    run = BACKEND.shortcut(spec, problem._replace(needs_grad=False), (rows.T, rows.B, 9))
    if cell.row_inputs:
        assert run is None
        return
    y, h_n = run(x.view(dense), hx, tuple(weights))
    assert torch.equal(y.flatten(0, 1), output.y)
    assert all(map(torch.equal, h_n, output.h_n))


@quick
def test_gradients_that_are_not_needed_change_none_of_the_others(cell, dtype):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("packed", cell, dtype)
    output = BACKEND.forward(layer, rows, x, hx, weights, True)

    def grads(needs):
        found = BACKEND.backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        return flat(found)

    everything = grads(all_needs(layer))
    states, count = len(hx), len(everything)
    for alone in range(count):
        needed = [index == alone for index in range(count)]
        needs = Needs(needed[0], tuple(needed[1 : 1 + states]), tuple(needed[1 + states :]))
        for index, (found, whole) in enumerate(zip(grads(needs), everything, strict=True)):
            if index == alone:
                assert torch.equal(found, whole)
            else:
                assert found is None


def test_sums_over_many_rows_are_as_exact_as_torchs():
    cell, dtype = OPERATIONS
    layer, rows = LayerSpec(cell, 3, 5, 1, True), Rows(40, 300, 12000)
    generator = torch.Generator().manual_seed(0)
    weights = [0.5 * torch.randn(shape, generator=generator) for shape in layer.weight_shapes]
    x = torch.randn(rows.N, layer.features, generator=generator)
    hx = tuple(torch.zeros(1, rows.B, 5) for _ in cell.states)
    grad_y, nothing = torch.rand(rows.N, 5, generator=generator), (None,) * len(hx)
    needs = all_needs(layer)
    output = BACKEND.forward(layer, rows, x, hx, weights, True)
    ours = BACKEND.backward(layer, rows, x, hx, weights, output, grad_y, nothing, needs)
    torchs = layer_backward(layer, rows, x, hx, weights, grad_y, nothing, needs)
    exact = layer_backward(
        *(layer, rows, x.double(), tuple(wide(*hx)), wide(*weights)),
        *(grad_y.double(), nothing, needs),
    )
    for found, eager, truth in zip(ours.weights, torchs.weights, exact.weights, strict=True):
        scale = truth.abs().max()
        allowed = 2 * (eager - truth).abs().max() + 4 * torch.finfo(dtype).eps * scale
        assert (found - truth).abs().max() <= allowed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@quick
def test_nan_and_infinities_reach_what_they_reach_in_torch(cell, dtype, value):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("dense", cell, dtype)
    needs = all_needs(layer)
    x[4, layer.input_size + 2] = value  # a row input of the second step, hidden unit 2
    weights[4][5] = value  # a parameter, hidden unit 5
    output = BACKEND.forward(layer, rows, x, hx, weights, True)
    grads = BACKEND.backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
    y, h_n = layer_forward(layer, rows, x, hx, weights)
    truth = layer_backward(layer, rows, x, hx, weights, grad_y, grad_h_n, needs)
    assert math.isinf(value) or y.isnan().any()
    found, expected = (output.y, *output.h_n, *flat(grads)), (y, *h_n, *flat(truth))
    for ours, theirs in zip(found, expected, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
