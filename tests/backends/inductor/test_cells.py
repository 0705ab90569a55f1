"""Protects the Inductor backend on cells of any form, compiled and step by step."""

import pytest
import torch
from own_cells import CALLS as OWN_CALLS
from own_cells import CALLS_WITHOUT_INPUT, WIDER_CELLS, agrees
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit import LayerOutput, LayerSpec, Needs, Rows
from rnnjit.ir import GRU, LSTM, CellSpec
from rnnjit.ir.builder import detach, relu, sigmoid, tanh
from rnnjit.reference import layer_backward, layer_forward, layer_forward_states
from rnnjit_inductor import InductorBackend
from rnnjit_inductor.plan import MATRIX, ROWS, Plan

CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def traced(function, states=("h",), gates=("z",)):
    return CellSpec.trace(function, name=function.__name__, gates=gates, states=states)


def leaky(zx, zh, h):
    h = 0.7 * h + 0.3 * tanh(zx[0] + zh[0])
    return h, h


def parts_first(zx, zh, h):
    """Gates whose parts are used apart, summed, and apart, and one that drops its zh."""
    h = tanh(zx[0] * sigmoid(zh[0])) * sigmoid(zx[1] + zh[1]) + relu(zh[2]) * 0.1 * zx[2]
    return h + 0.1 * tanh(zx[3]), h + 0.1 * tanh(zx[3])


def three_states(zx, zh, h, c, n):
    """Of three states, with parts of a gate apart, and a state's gradient beside the product's."""
    f, g = sigmoid(zx[0] + zh[0]), tanh(zx[1] * 0.5 + zh[1])
    n = 0.9 * n + 1.0
    c = f * c + (1.0 - f) * g
    h = tanh(c / n + 0.1 * h)
    return h, h, c, n


def exchanged(zx, zh, h, c, n):
    """Two states change places: each has the other's gradient, which must not be overwritten."""
    h = tanh(zx[0] + zh[0] + 0.5 * c)
    return h, h, n, c


def constant_state(zx, zh, h, c):
    """A new state that depends on nothing, and a gradient that reaches no gate."""
    h = tanh(detach(zx[0] + zh[0])) + c
    return h, h, 0.5 * (h - h) + 0.25


def logistic(zx, zh, h):
    h = sigmoid(zx[0] + zh[0])
    return h, h


CELLS = {
    "lstm": (LSTM, 0),
    "lstm, projected": (LSTM, 5),
    "gru": (GRU, 0),
    "logistic, projected": (traced(logistic), 3),
    "leaky": (traced(leaky), 0),
    "parts first": (traced(parts_first, gates="abcd"), 0),
    "three states": (traced(three_states, ("h", "c", "n"), "fg"), 0),
    "exchanged": (traced(exchanged, ("h", "c", "n")), 0),
    "constant state": (traced(constant_state, ("h", "c")), 0),
}
CALLS = {
    # lengths, I, H, directions, bias, packed
    "dense": ((7, 7, 7), 5, 9, 1, True, False),
    "one row": ((4,), 3, 33, 1, True, False),
    "no bias, two directions": ((6, 6), 4, 17, 2, False, False),
    "packed": ((9, 5, 5, 1), 6, 20, 2, True, True),
}


def in_chunks(tile):
    """The backend with chunks of two steps, or without chunks."""

    def plan(layer, rows, dtype, device, threads, keep):
        return Plan(2, tile, 1) if tile and rows.T >= 2 and rows.N else None

    return InductorBackend(plan)


def given(call, cell, proj_size):
    lengths, I, H, directions, bias, packed = CALLS[call]
    layer = LayerSpec(cell, I, H, directions, bias, proj_size)
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    rows = Rows(len(sizes), len(lengths), sum(sizes), torch.tensor(sizes) if packed else None)
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    def states():
        return tuple(random(directions, rows.B, size) for size in layer.state_sizes)

    weights = [random(*shape, scale=0.5 * H**-0.5) for shape in layer.weight_shapes * directions]
    grads = random(rows.N, directions * layer.output_size), states()
    return layer, rows, random(rows.N, layer.features), states(), weights, grads


def every_need(hx, weights):
    return Needs(True, (True,) * len(hx), (True,) * len(weights))


def close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, **CLOSE)


def check(backend, call, cell, proj_size):
    """Both passes agree with the reference, whichever gradients are given."""
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given(call, cell, proj_size)
    needs = every_need(hx, weights)
    y, h_n = layer_forward(layer, rows, x, hx, weights)
    without = backend.forward(layer, rows, x, hx, weights, False)
    close((without.y, *without.h_n), (y, *h_n))
    found = backend.forward(layer, rows, x, hx, weights, True)
    close((found.y, *found.h_n), (y, *h_n))
    for of_y, of_h_n in (
        (grad_y, grad_h_n),
        (None, grad_h_n),
        (grad_y, (None,) * len(hx)),
        (None, (None, *grad_h_n[1:])) if len(hx) > 1 else (grad_y, grad_h_n),
    ):
        arguments = (layer, rows, x, hx, weights)
        grads = backend.backward(*arguments, LayerOutput(*found), of_y, of_h_n, needs)
        expected = layer_backward(*arguments, of_y, of_h_n, needs)
        close(
            (grads.x, *grads.hx, *grads.weights),
            (expected.x, *expected.hx, *expected.weights),
        )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", CELLS)
def test_cells_step_by_step(name, call):
    check(in_chunks(None), call, *CELLS[name])


#: Each cell runs by one kind of tile, GRU by both: a cell takes a minute to compile.
IN_ROWS = ["lstm, projected", "parts first", "constant state"]
CHUNKS = [
    pytest.param(
        tile, name, marks=() if (tile, name) == (MATRIX, "three states") else pytest.mark.full
    )
    for tile, names in {
        MATRIX: [name for name in CELLS if name not in IN_ROWS],
        ROWS: [*IN_ROWS, "gru"],
    }.items()
    for name in names
]


@pytest.mark.parametrize(("tile", "name"), CHUNKS)
def test_cells_in_chunks(tile, name):
    for call in CALLS:
        check(in_chunks(tile), call, *CELLS[name])


WIDER = {cell.name: cell for cell in WIDER_CELLS}


@pytest.mark.parametrize("call", [*OWN_CALLS, *CALLS_WITHOUT_INPUT])
@pytest.mark.parametrize("name", WIDER)
def test_wider_cells_step_by_step(name, call):
    dtype = torch.float32 if call == "no input" else torch.float64
    agrees(in_chunks(None), WIDER[name], call, dtype)


WIDER_CHUNKS = [
    pytest.param(tile, name, marks=() if name == "leaky rate" else pytest.mark.full)
    for tile, names in {
        MATRIX: ["integrators", "spiking", "gru 1", "recurrent alone"],
        ROWS: ["leaky rate", "peephole", "all operations"],
    }.items()
    for name in names
]


@pytest.mark.parametrize(("tile", "name"), WIDER_CHUNKS)
def test_wider_cells_in_chunks(tile, name):
    for call in (*OWN_CALLS, *CALLS_WITHOUT_INPUT):
        agrees(in_chunks(tile), WIDER[name], call, torch.float64)


RECORDED = {
    "lstm": (LSTM, 0),
    "lstm, projected": (LSTM, 5),
    "three states": CELLS["three states"],
    "exchanged": CELLS["exchanged"],
    "peephole": (WIDER["peephole"], 0),
    "integrators": (WIDER["integrators"], 0),
}


@pytest.mark.parametrize(
    ("tile", "name"),
    [
        *((None, name) for name in RECORDED),
        pytest.param(ROWS, "exchanged", marks=pytest.mark.full),
        pytest.param(MATRIX, "integrators", marks=pytest.mark.full),
    ],
)
def test_states_of_every_step(tile, name):
    """They and the gradients through them are the reference's, whichever gradients are given."""
    backend, (cell, proj_size) = in_chunks(tile), RECORDED[name]
    for call in CALLS:
        layer, rows, x, hx, weights, (grad_y, grad_h_n) = given(call, cell, proj_size)
        arguments, needs = (layer, rows, x, hx, weights), every_need(hx, weights)
        expected = layer_forward_states(*arguments)
        for keep in (False, True):
            found = backend.forward_states(*arguments, keep)
            close(
                (found.y, *found.h_n, *found.states),
                (*expected[:1], *expected.h_n, *expected.states),
            )
        grad_states = tuple(each.flip(0).sin() for each in found.states)
        nothing = found._replace(saved=())  # as in a graph
        for output, of_states in (
            (found, grad_states),
            (found, (None, *grad_states[1:])),
            (found, (None,) * len(grad_states)),
            (nothing, grad_states),
        ):
            given_grads = grad_y, grad_h_n
            ours = backend.backward_states(*arguments, output, *given_grads, of_states, needs)
            theirs = layer_backward(*arguments, *given_grads, needs, of_states)
            close((ours.x, *ours.hx, *ours.weights), (theirs.x, *theirs.hx, *theirs.weights))


@pytest.mark.parametrize("name", ["leaky rate", "integrators", "gru 1"])
def test_gradients_that_are_not_needed_are_not_computed(name):
    cell, backend = WIDER[name], in_chunks(None)
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given("packed", cell, 0)
    output = backend.forward(layer, rows, x, hx, weights, True)
    arguments = (layer, rows, x, hx, weights)
    expected = layer_backward(*arguments, grad_y, grad_h_n, every_need(hx, weights))
    matrices = layer.weights_per_direction - len(cell.parameters)
    parameters = [k >= matrices for k in range(layer.weights_per_direction)] * 2
    for needs in (
        Needs(True, (False,) * len(hx), (False,) * len(weights)),
        Needs(False, (True,) * len(hx), tuple(parameters)),
        Needs(False, (False,) * len(hx), tuple(not each for each in parameters)),
    ):
        found = backend.backward(*arguments, output, grad_y, grad_h_n, needs)
        wanted = (needs.x, *needs.hx, *needs.weights)
        ours, theirs = ((each.x, *each.hx, *each.weights) for each in (found, expected))
        assert [each is not None for each in ours] == list(wanted)
        pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0] is not None]
        close(*zip(*pairs, strict=True))


def constants(zx, zh, h, c, d, p):
    """New states that no row has an own value of, and a step that is a parameter's alone."""
    return h * p + zx[0], h * p + zx[0], p * 2.0, sigmoid(detach(p) - p) * 0.5 + 0.25


CONSTANTS = CellSpec.trace(
    *(constants,), name="constants", gates="z", states=("h", "c", "d"), parameters=("p",)
)


@pytest.mark.parametrize("tile", [None, pytest.param(MATRIX, marks=pytest.mark.full)])
def test_states_that_are_the_same_in_every_row(tile):
    for call in CALLS:
        check(in_chunks(tile), call, CONSTANTS, 0)


@pytest.mark.parametrize("lengths", [[8] * 4, [8, 7, 4, 1]], ids=["dense", "packed"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 11, num_layers=2, bidirectional=True),
        lambda: nn.LSTM(3, 11, bidirectional=True, proj_size=4),
        lambda: nn.GRU(3, 11, num_layers=2, bidirectional=True),
    ],
    ids=["lstm", "lstm, projected", "gru"],
)
def test_torchs_layers_step_by_step(make, lengths):
    torch.manual_seed(0)
    eager = make().double()
    fast = rnnjit.compile(eager, backend=in_chunks(None))
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    if len(set(lengths)) > 1:
        x = pack_padded_sequence(x, lengths)
    results = []
    for module in (fast, eager):
        y, h_n = module(x)
        y = y.data if len(set(lengths)) > 1 else y
        states = h_n if isinstance(h_n, tuple) else (h_n,)
        loss = (y.sin() * y).sum() + sum(state.square().sum() for state in states)
        results.append([y, *states, *torch.autograd.grad(loss, module.parameters())])
    close(*results)


@pytest.mark.parametrize("trained", [("weight_ih_l0", "weight_hr_l0"), ("weight_hr_l0",)])
def test_what_a_state_does_not_depend_on_has_no_gradient(trained):
    """Of one step, c does not depend on W_hr, and torch's operator gives no gradient for it."""
    torch.manual_seed(0)
    rnn = nn.LSTM(3, 4, proj_size=2, dtype=torch.float64)
    for name, parameter in rnn.named_parameters():
        parameter.requires_grad_(name in trained)
    fast = rnnjit.compile(rnn, backend="inductor", recompute=True)
    fast(torch.randn(1, 2, 3, dtype=torch.float64))[1][1].sum().backward()
    assert not rnn.weight_hr_l0.grad.any()
    assert rnn.weight_ih_l0.grad is None or rnn.weight_ih_l0.grad.any()
