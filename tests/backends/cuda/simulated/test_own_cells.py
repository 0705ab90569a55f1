"""Protects the CUDA kernels of cells that users write: parameters, row inputs, no product."""

from itertools import product

import pytest
import torch
from cuda_layers import Simulated, check, layer_of, results, truth
from measures import user_cells
from own_cells import CALLS, CALLS_WITHOUT_INPUT, WIDER_CELLS, agrees, three_states, traced
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit import Needs, Recurrent, cells, reference
from rnnjit.ir import LSTM
from rnnjit.ir.builder import tanh
from rnnjit_cuda.kernels import FAMILIES

CELLS = {cell.name: cell for cell in WIDER_CELLS}
TAKEN = [*CALLS, *CALLS_WITHOUT_INPUT]
#: Which is long: 390 rows.
TAKEN.remove("many rows")
BACKENDS = {family: Simulated(family) for family in FAMILIES}
#: Those that compute cells without a recurrent product.
FREE = ("register", "step")
ALL = (True, True, True)


def pairs():
    """Each family with every other cell, by one of the calls; all of them are `full`."""
    for (f, family), (c, cell) in product(enumerate(FAMILIES), enumerate(WIDER_CELLS)):
        if not cell.has_product and family not in FREE:
            continue
        for k, call in enumerate(TAKEN):
            dtype = (torch.float32, torch.float64)[(f + c // 2 + k) % 2]
            now = k == (f + 2 * c) % len(TAKEN) and ((f + c) % 2 == 0 or not cell.has_product)
            marks = () if now else pytest.mark.full
            name = f"{family}-{cell.name}-{call}"
            yield pytest.param(family, cell, call, dtype, id=name, marks=marks)


@pytest.mark.parametrize(("family", "cell", "call", "dtype"), list(pairs()))
def test_values_and_gradients(family, cell, call, dtype):
    agrees(BACKENDS[family], cell, call, dtype)


@pytest.mark.parametrize("product", [True, False], ids=["product", "no product"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reads_the_second_parameter_and_row_input_alone(family, product):
    def step(zx, zh, h, shift, scale, drive, share):
        h = scale * share * tanh((zx[0] + zh[0] if product else zx[0]) + shift + drive)
        return h, h

    cell = traced(step, ("h",), ("shift", "scale"), row_inputs=("drive", "share"))
    assert not cell.backward.used & {"shift", "drive"}
    assert cell.backward.used >= {"scale", "share"}
    check(BACKENDS[family], layer_of(cell, 5, sizes=(3, 3, 1), D=2, given=ALL))


#: More hidden units than a tile, sequences than a slab, and steps than are loaded ahead.
LARGE = {
    "leaky rate": layer_of(CELLS["leaky rate"], 40, torch.float32, (9, 9, 7, 2), D=2, given=ALL),
    "integrators": layer_of(CELLS["integrators"], 70, sizes=(4, 4, 4, 3), given=ALL),
}


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "name"),
    [*((family, "leaky rate") for family in FAMILIES), *((each, "integrators") for each in FREE)],
)
def test_large_layers(family, name):
    check(BACKENDS[family], LARGE[name])


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_that_was_asked_for_runs(family, pass_):
    for cell in WIDER_CELLS:
        layer, rows, x, *_ = layer_of(cell, 8, torch.float32, D=2, given=(True,) * 4)
        taken = BACKENDS[family]._recurrence(layer, rows, x, pass_)._plan.key.family
        assert taken == (family if cell.has_product or family in FREE else "step")


HALVES = [
    layer_of(CELLS["leaky rate"], 9, torch.bfloat16, (4, 3, 1), D=2, given=(True, True, False)),
    layer_of(CELLS["peephole"], 7, torch.float16, given=(True, False, True)),
    layer_of(CELLS["integrators"], 6, torch.bfloat16, (3, 2, 2), D=2),
]


@pytest.mark.parametrize(
    ("family", "call"),
    [
        pytest.param(family, call, marks=() if (f + c) % 3 == 0 else pytest.mark.full)
        for f, family in enumerate(FAMILIES)
        for c, call in enumerate(HALVES)
    ],
)
def test_sixteen_bits(family, call):
    check(BACKENDS[family], call)


@pytest.mark.parametrize(
    ("family", "name"),
    [*((family, "leaky rate") for family in FAMILIES), *((each, "integrators") for each in FREE)],
)
def test_nan_and_infinities_go_where_the_equations_take_them(family, name):
    cell = CELLS[name]
    call = layer_of(cell, 5, torch.float64, (3, 3, 2), D=2, given=ALL)
    # Row inputs of row 4 in direction 0, and of row 1 in direction 1.
    call.x[4, 3 + 1] = float("nan")
    call.x[1, 3 + 5 * len(cell.row_inputs) + 2] = float("inf")
    found, expected = results(BACKENDS[family], call), truth(call)
    for each, value in expected.items():
        if value is not None:
            close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
            torch.testing.assert_close(found[each], value, **close)
    assert 0 < found["y"].isnan().sum() < found["y"].numel() / 2


@pytest.mark.parametrize("name", ["leaky rate", "integrators"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_that_nobody_needs_are_not_written(family, name):
    call, backend = layer_of(CELLS[name], 5, D=2, given=ALL), BACKENDS[family]
    output = backend.forward(*call[:5], True)
    weights = tuple(index % 5 == 0 for index in range(len(call.weights)))
    needs = Needs(False, (True,) * len(call.hx), weights)
    grads = backend.backward(*call[:5], output, *call[5:], needs)
    whole = backend.backward(*call[:5], output, *call[5:], call.needs)
    assert grads.x is None
    for one, other, needed in zip(grads.weights, whole.weights, weights, strict=True):
        assert torch.equal(one, other) if needed else one is None
    for one, other in zip(grads.hx, whole.hx, strict=True):
        assert torch.equal(one, other)


def test_a_projection_of_a_cell_without_a_product():
    def step(zx, zh, h, c, scale):
        c = 0.5 * c + tanh(zx[0])
        return scale * c, scale * c, c

    cell = traced(step, ("h", "c"), ("scale",))
    check(BACKENDS["step"], layer_of(cell, 6, torch.float64, (3, 3, 2), D=2, P=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_for_a_gpu_finds_no_difference(family):
    for cell, packed in zip(user_cells.CELLS.values(), (True, False, True), strict=True):
        given = BACKENDS[family], cell, 6, torch.float64, "cpu"
        assert user_cells.difference(*given, packed=packed) < 1e-14


def test_the_check_for_a_gpu_sees_what_is_wrong(monkeypatch):
    class Wrong(Simulated):
        def backward_states(self, *given):
            grads = super().backward_states(*given)
            grads.x[3, -1] *= 1 + 1e-6
            return grads

    given = Wrong("step"), user_cells.LEAKY, 4, torch.float64, "cpu"
    assert 1e-8 < user_cells.difference(*given, packed=False) < 1e-6


SEVERAL_STATES = {
    cell.name: cell
    for cell in (
        LSTM,
        *WIDER_CELLS,
        traced(three_states, ("h", "c", "n"), gates="fg", name="three"),
    )
    if len(cell.states) > 1
}
RECORDED = {
    ("register", "lstm"),
    ("register", "integrators"),
    ("block", "peephole"),
    ("grid", "three"),
    ("stream", "leaky rate"),
    ("step", "three"),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*pair, marks=() if pair in RECORDED else pytest.mark.full)
        for pair in product(FAMILIES, SEVERAL_STATES)
    ],
)
def test_states_of_all_steps_and_their_gradients(family, name):
    cell, states = SEVERAL_STATES[name], (True, False, True)
    call = layer_of(cell, 6, torch.float64, (3, 3, 2), D=2, given=(True, *states))
    backend, exact = BACKENDS[family], call.double()
    given = [torch.randn(call.rows.N, 12).double() for _ in cell.states[1:]]
    for keep in (False, True):
        output = backend.forward_states(*call[:5], keep)
        expected = reference.layer_forward_states(*exact[:5])
        close = {"rtol": 1e-13, "atol": 1e-13}
        torch.testing.assert_close(
            (output.y, output.h_n, output.states), (expected[0], expected[1], expected[3]), **close
        )
    for grads in (given, [None for _ in given], [None, *given[1:]]):
        found = backend.backward_states(*call[:5], output, *call[5:], tuple(grads), call.needs)
        wanted = reference.layer_backward(*exact, call.needs, tuple(grads))
        for one, other in zip(
            (found.x, *found.hx, *found.weights),
            (wanted.x, *wanted.hx, *wanted.weights),
            strict=True,
        ):
            other = torch.zeros_like(one) if other is None else other
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "cell"),
    [
        ("register", cells.IndRNN(3, 5)),
        ("block", cells.PeepholeLSTM(3, 5)),
        ("grid", cells.LIF(3, 5)),
        ("stream", cells.LeakyRNN(3, 5, sigma=0.2)),
        ("step", cells.LowRankRNN(3, 5, rank=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_compiled_module_is_the_uncompiled_one(family, cell):
    torch.manual_seed(0)
    module = Recurrent(cell, num_layers=2, bidirectional=True).double()
    data, found = torch.randn(4, 3, 3, dtype=torch.float64), []
    for each in (module, rnnjit.compile(module, backend=BACKENDS[family])):
        torch.manual_seed(1)
        x = data.clone().requires_grad_()
        y, ends = each(pack_padded_sequence(x, torch.tensor([4, 2, 1])))
        ends = ends if isinstance(ends, tuple) else (ends,)
        loss = y.data.square().sum() + sum(end.sin().sum() for end in ends)
        grads = torch.autograd.grad(loss, (x, *each.parameters()))
        found.append([value.detach() for value in (y.data, *ends, *grads)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
