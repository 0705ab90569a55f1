"""Protects the Numba backend on user-defined cells, and its reasons to decline others."""

import pytest
import torch
from covered import in_turn

from rnnjit import LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.cells import GRU, LSTM, RNN_RELU, RNN_TANH, Cell
from rnnjit.cells.builder import detach, exp, relu, sigmoid, silu, softplus, tanh
from rnnjit.reference import layer_backward, layer_forward
from rnnjit_numba import BACKEND


def elman(name, function):
    """The cell h' = function(z)."""

    def step(zx, zh, h):
        out = function(zx[0] + zh[0])
        return out, out

    return Cell.trace(step, name=name, gates=["z"], states=["h"])


CELLS = [
    elman("sigmoid", sigmoid),
    elman("small exp", lambda z: exp(0.1 * z - 3.0)),
    elman("linear", lambda z: z * 0.9),
    elman("constant to gradients", lambda z: tanh(detach(z))),
]
CALLS = {
    # lengths, I, H, directions, bias, packed
    "dense": ((7, 7, 7), 5, 9, 1, True, False),
    "one row": ((4,), 3, 33, 1, True, False),
    "no bias, two directions": ((6, 6), 4, 17, 2, False, False),
    "packed": ((9, 5, 5, 1), 6, 20, 2, True, True),
    "many rows": ((30,) * 13, 8, 40, 1, True, False),
}


def given(call, cell, dtype):
    lengths, I, H, directions, bias, packed = CALLS[call]
    layer = LayerSpec(cell, I, H, directions, bias)
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    rows = Rows(len(sizes), len(lengths), sum(sizes), torch.tensor(sizes) if packed else None)
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    weights = [random(*shape, scale=0.5 * H**-0.5) for shape in layer.weight_shapes * directions]
    state = (directions, rows.B, H)
    grads = random(rows.N, directions * H), (random(*state),)
    return layer, rows, random(rows.N, I), (random(*state),), weights, grads


def close(found, expected, dtype):
    tolerance = 1e-10 if dtype is torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("cell", "dtype"),
    in_turn(CELLS, [torch.float32, torch.float64]),
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_cells_of_ones_own_agree_with_the_reference(cell, call, dtype):
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given(call, cell, dtype)
    needs = Needs(True, (True,), (True,) * len(weights))
    found = BACKEND.forward(layer, rows, x, hx, weights, True)
    grads = BACKEND.backward(
        *(layer, rows, x, hx, weights, LayerOutput(*found)), grad_y, grad_h_n, needs
    )
    exact = [tensor.double() for tensor in (x, *hx, *weights, grad_y, *grad_h_n)]
    x, h0, *weights, grad_y, grad_h = exact
    y, h_n = layer_forward(layer, rows, x, (h0,), weights)
    expected = layer_backward(layer, rows, x, (h0,), weights, grad_y, (grad_h,), needs)
    close(found.y, y, dtype)
    close(found.h_n[0], h_n[0], dtype)
    for ours, theirs in zip(
        (grads.x, *grads.hx, *grads.weights),
        (expected.x, *expected.hx, *expected.weights),
        strict=True,
    ):
        close(ours, torch.zeros_like(ours).double() if theirs is None else theirs, dtype)


def test_a_stack_of_ones_own_cell_by_shortcut_steps_and_layers():
    cell, T, B = CELLS[0], 5, 3
    spec = RNNSpec(4, 11, num_layers=2, cell=cell)
    generator = torch.Generator().manual_seed(0)
    weights = tuple(torch.randn(shape, generator=generator) * 0.3 for shape in spec.weight_shapes)
    x, h0 = torch.randn(T, B, 4, generator=generator), torch.randn(2, B, 11, generator=generator)
    rows, below, last = Rows(T, B, T * B), x.flatten(0, 1), []
    for index, layer in enumerate(spec.layers):
        own = weights[4 * index : 4 * index + 4]
        below, (h_n,), _ = BACKEND.forward(layer, rows, below, (h0[index, None],), own, False)
        last.append(h_n)
    problem = Problem(torch.float32, "cpu", T, B, T * B, False, False)
    y, (h_n,) = BACKEND.shortcut(spec, problem, (T, B, 11))(x, (h0,), weights)
    assert torch.equal(y.flatten(0, 1), below)
    assert torch.equal(h_n, torch.cat(last))
    step, h = BACKEND.stepper(spec, torch.float32, B), h0
    for frame, whole in zip(x, y, strict=True):
        after, out = torch.empty_like(h), torch.empty(B, 11)
        step(frame, (h,), (after,), out, weights)
        assert torch.equal(out, whole)
        h = after
    assert torch.equal(h, h_n)


def test_cells_do_not_share_kernels():
    layer, rows, x, hx, weights, _ = given("dense", RNN_TANH, torch.float32)
    found = {}
    for cell in (RNN_TANH, RNN_RELU, *CELLS[:3]):
        own = LayerSpec(cell, *CALLS["dense"][1:5])
        found[cell] = BACKEND.forward(own, rows, x, hx, weights, False).y
    assert len({y.numpy().tobytes() for y in found.values()}) == len(found)
    assert torch.equal(BACKEND.forward(layer, rows, x, hx, weights, False).y, found[RNN_TANH])


def traced(function, states=("h",), parameters=(), operand=None, gates=("z",)):
    return Cell.trace(
        *(function,),
        name="mine",
        gates=gates,
        states=states,
        parameters=parameters,
        operand=operand,
    )


DECLINED = [
    (LSTM, ["has 4 gates", "has 2 states"]),
    (GRU, ["has 3 gates"]),
    (traced(lambda zx, zh, h: (tanh(zx[0]) + zh[0],) * 2), ["used apart"]),
    (traced(lambda zx, zh, h, c: (c, c, tanh(zx[0] + zh[0])), ("h", "c")), ["has 2 states"]),
    (traced(lambda zx, zh, h, p: (tanh(zx[0] + zh[0]),) * 2, parameters=["p"]), ["parameters (p)"]),
    (traced(lambda zx, zh, h: (tanh(zx[0] + zh[0]),) * 2, operand=relu), ["recurrent operand"]),
    (
        traced(lambda zx, zh, h: (relu(tanh(zx[0] + zh[0])), tanh(zx[0] + zh[0]))),
        ["the output is not the new state"],
    ),
    (traced(lambda zx, zh, h: (tanh(zx[0] + zh[0]) + h,) * 2), ["depends on the state before"]),
    (traced(lambda zx, zh, h: (silu(zx[0] + zh[0]),) * 2), ["the derivative needs more"]),
]


@pytest.mark.parametrize(("cell", "lacking"), DECLINED)
def test_other_cells_are_declined_in_words(cell, lacking):
    reasons = BACKEND.why_not_cell(cell)
    assert len(reasons) == len(lacking)
    for words, reason in zip(lacking, reasons, strict=True):
        assert words in reason


def test_accepted_are_cells_and_calls_of_nn_rnn():
    problem = Problem(torch.float32, "cpu", 3, 2, 6, False, True)
    for cell in (RNN_TANH, RNN_RELU, *CELLS):
        assert BACKEND.why_not_cell(cell) == []
        assert cell.operations <= BACKEND.operations
        assert BACKEND.why_not(RNNSpec(2, 3, cell=cell), problem) == []
    (reason,) = BACKEND.why_not(RNNSpec(2, 3, proj_size=1), problem)
    assert "proj_size" in reason
    assert not elman("softplus", softplus).operations <= BACKEND.operations
