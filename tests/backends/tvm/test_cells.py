"""Protects the TVM backend on cells that torch has no layer for: operations and whole layers."""

import ctypes
import math

import numpy as np
import pytest
import torch
from covered import in_turn
from own_cells import CALLS, CELLS, DECLINED, accepts_what_it_should, agrees, elman, stacked

import rnnjit
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.pointwise import lower
from rnnjit.ir import GRU, LSTM, OPERATIONS, Instruction, Kind, Program, builder
from rnnjit.ir.numpy_evaluator import evaluate_arrays
from rnnjit.runtime.linker import Linked
from rnnjit_tvm import BACKEND, compiler

full = pytest.mark.full
DTYPES = {32: np.float32, 64: np.float64}
CONSTANTS = {"leaky_relu": (0.01,), "clamp": (-1.5, 2.0)}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, math.inf, -math.inf, math.nan]


#: The name of a program that is two operations: a * b + a.
PRODUCT_AND_SUM = "product_and_sum"


def program_of(name):
    """A program of inputs a and b that is one operation; a condition selects one of them."""
    if name == PRODUCT_AND_SUM:
        return Program(("a", "b"), (Instruction("mul", (0, 1)), Instruction("add", (2, 0))), (3,))
    if name == "where":
        less = Instruction("lt", (0, 1))
        return Program(("a", "b"), (less, Instruction("where", (2, 0, 1))), (3,))
    count = len(OPERATIONS[name].arguments)
    arguments = tuple(n % 2 for n in range(count))
    instructions = [Instruction(name, arguments, CONSTANTS.get(name, ()))]
    if OPERATIONS[name].result is Kind.CONDITION:
        instructions.append(Instruction("where", (2, 0, 1)))
    return Program(("a", "b"), tuple(instructions), (1 + len(instructions),))


@pytest.fixture(scope="module", params=[32, 64])
def run(request):
    """A function that applies an operation to two arrays, compiled for this machine."""
    from rnnjit_tvm.pointwise import vectors
    from rnnjit_tvm.tensorir import Lanes, Module, T, integer, loop

    bits, isa = request.param, host_isa()
    lanes = Lanes(bits, isa.lanes(bits // 8), isa.fma)
    module = Module(lanes)

    def add(name):
        def body(a, b, out, count):
            with loop(integer(0), T.truncdiv(count, integer(lanes.count))) as v:
                at = lanes.at(v * lanes.count)
                given = {"a": T.bind(a[at]), "b": T.bind(b[at])}
                (value,) = lower(program_of(name), vectors(lanes), given)
                T.buffer_store(out, value, [at])

        module.add(name + "_", ["a", "b", "out"], ["count"], body)

    names = [*sorted(BACKEND.operations - {"constant"}), PRODUCT_AND_SUM]
    for name in names:
        add(name)
    linked = Linked(compiler._object_code(module.functions, isa), [name + "_" for name in names])

    def apply(name, a, b):
        size = -(-len(a) // lanes.count) * lanes.count
        given = [np.resize(np.asarray(each, DTYPES[bits]), size) for each in (a, b)]
        out = np.empty(size, DTYPES[bits])
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)
        call = function(linked.addresses[names.index(name)])
        call(*(each.ctypes.data for each in (*given, out)), size)
        return [each[: len(a)] for each in (*given, out)]

    return apply


@pytest.mark.parametrize("name", sorted(BACKEND.operations - {"constant"}))
def test_operations_agree_with_numpy(name, run):
    values = np.concatenate([SPECIAL, np.random.default_rng(0).normal(0.0, 3.0, 50)])
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    a, b, found = run(name, a, b)
    (expected,) = evaluate_arrays(program_of(name), [a, b])
    unit = np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, expected, rtol=4 * unit, atol=8 * unit)
    if name in ("neg", "abs", "sqrt", "detach", "log1p", "expm1"):
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found)[numbers], np.signbit(expected)[numbers])


def test_a_product_is_rounded_before_it_is_added_to(run):
    values = np.random.default_rng(0).normal(0.0, 3.0, 1000)
    a, b, found = run(PRODUCT_AND_SUM, values, values[::-1])
    np.testing.assert_array_equal(found, a * b + a)


@pytest.mark.parametrize(("name", "units"), [("exp", 1.0), ("sigmoid", 2.5)])
def test_exponentials_are_near_to_the_last_bit(name, units, run):
    limit = 86.0 if run("exp", [89.0], [0.0])[2].dtype == np.float32 else 700.0
    x, _, found = run(name, np.linspace(-limit, limit, 40001), [0.0])
    exact = np.exp(-np.abs(x.astype(np.longdouble)))
    if name == "exp":
        exact = np.where(x < 0, exact, 1 / exact)
    else:
        exact = np.where(x < 0, exact, 1) / (1 + exact)
    unit = np.spacing(exact.astype(found.dtype)).astype(np.longdouble)
    assert (np.abs(found - exact) / unit).max() <= units


@pytest.mark.parametrize(
    ("name", "sign", "low", "high", "units"),
    [
        ("log", 1, -37, 38, 1.1),
        ("log1p", 1, -30, 38, 1.1),
        ("log1p", -1, -30, -0.05, 1.1),
        ("expm1", 1, -30, 1.9, 1.9),
        ("expm1", -1, -30, 1.9, 1.9),
        ("softplus", 1, -10, 1.9, 2.0),
        ("softplus", -1, -10, 1.9, 2.0),
    ],
)
def test_logarithms_are_near_to_the_last_bit(name, sign, low, high, units, run):
    # Half of the numbers are of every size, and half are of the sizes where cancellation threatens.
    sizes = np.concatenate([10.0 ** np.linspace(low, high, 20001), np.linspace(0.05, 0.9, 20001)])
    x, _, found = run(name, sign * sizes, [0.0])
    wide = x.astype(np.longdouble)
    if name == "softplus":
        exact = np.where(wide > 20, wide, np.log1p(np.exp(wide)))
    else:
        exact = getattr(np, name)(wide)
    unit = np.spacing(np.abs(exact).astype(found.dtype)).astype(np.longdouble)
    assert (np.abs(found - exact) / unit).max() <= units


def test_logarithms_at_the_ends_of_their_ranges(run):
    limits = np.finfo(run("log", [1.0], [0.0])[2].dtype)
    tiny, most, eps = limits.smallest_subnormal, limits.max, limits.eps
    given = {
        "log": [tiny, limits.tiny / 4, most, 1.0],
        "log1p": [tiny, -tiny, eps / 4, -eps / 4, most, eps - 1],
        "expm1": [tiny, -tiny, limits.tiny, eps / 8, -eps / 8, np.log(most) * (1 - 4 * eps), -1e3],
        "softplus": [-1e3, 20.0, np.nextafter(limits.dtype.type(20), limits.max), most],
    }
    for name, values in given.items():
        x, _, found = run(name, values, [0.0])
        wide = x.astype(np.longdouble)
        if name == "softplus":
            exact = np.where(wide > 20, wide, np.log1p(np.exp(np.minimum(wide, 20))))
        else:
            exact = getattr(np, name)(wide)
        np.testing.assert_allclose(found, exact.astype(found.dtype), rtol=2 * eps, atol=0)
    assert run("expm1", [np.log(most) * 1.001], [0.0])[2].tolist() == [math.inf]


def test_exp_near_the_ends_of_its_range(run):
    dtype = run("exp", [0.0], [0.0])[2].dtype
    limits = np.finfo(dtype)
    last, tiny = np.log(limits.max), np.log(limits.smallest_subnormal)
    _, _, found = run("exp", [last * (1 - 1e-5), last + 0.1, 1e4, tiny + 0.1, tiny - 1, -1e4], [0])
    assert np.isfinite(found[0])
    assert found[1:3].tolist() == [math.inf, math.inf]
    assert found[3:].tolist() == [limits.smallest_subnormal, 0.0, 0.0]


#: Those that other tests compile anyway, and two that have all that a cell may have.
QUICK = {"lstm", "gru", "parts first", "three states"}


def cells_in_turn():
    """Each cell with both element types: `QUICK` ones with one of them in `make test`."""
    rows = in_turn(CELLS, [torch.float32, torch.float64])
    return [
        pytest.param(*row.values, marks=row.marks if row.values[0].name in QUICK else [full])
        for row in rows
    ]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("cell", "dtype"), cells_in_turn(), ids=lambda value: getattr(value, "name", str(value))
)
def test_cells_of_ones_own_agree_with_the_reference(cell, call, dtype):
    agrees(BACKEND, cell, call, dtype)


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=lambda cell: cell.name)
def test_a_stack_by_shortcut_and_layers(cell):
    stacked(BACKEND, cell)


@pytest.mark.parametrize(("cell", "lacking"), DECLINED)
def test_other_cells_are_declined_in_words(cell, lacking):
    reasons = BACKEND.why_not_cell(cell)
    assert len(reasons) == len(lacking)
    for words, reason in zip(lacking, reasons, strict=True):
        assert words in reason


def test_what_is_accepted():
    accepts_what_it_should(BACKEND)


@full
def test_a_cell_that_no_gradient_passes():
    layer, rows = rnnjit.LayerSpec(elman("stopped", builder.detach), 2, 3, 1, False), (2, 1, 2)
    given = (layer, rnnjit.Rows(*rows), torch.ones(2, 2), (torch.ones(1, 1, 3),))
    weights = [torch.ones(shape) for shape in layer.weight_shapes]
    output = BACKEND.forward(*given, weights, keep=True)
    assert output.y.tolist() == [[5.0] * 3, [17.0] * 3]
    needs = rnnjit.Needs(True, (True,), (True, True))
    grads = BACKEND.backward(*given, weights, output, output.y, (None,), needs)
    assert not any(grad.count_nonzero() for grad in (grads.x, *grads.hx, *grads.weights))
