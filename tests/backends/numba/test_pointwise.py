"""Protects each operation of cells, as the Numba backend lowers it, against torch's."""

import ctypes
import itertools
import math

import numpy as np
import pytest
import torch
from llvmlite import ir

from rnnjit.codegen import pointwise
from rnnjit.codegen.host import host_isa
from rnnjit.ir import OPERATIONS, Instruction, Kind, Program
from rnnjit.ir.torch_evaluator import evaluate_tensors
from rnnjit.runtime.linker import Linked
from rnnjit_numba import BACKEND
from rnnjit_numba.object_code import object_code
from rnnjit_numba.pointwise import _Vectors
from rnnjit_numba.simd import I64, VOID, Lanes

SPECIAL = [0.0, 1.0, 0.5, 1 + 2**-20, 3.7, 20.0, 88.0, 1e-30, 1e-44, 1e38, math.inf]
#: Those that are computed by several roundings; the others are exact.
ROUNDED = {
    *("exp", "tanh", "sigmoid", "silu", "tanh_backward", "sigmoid_backward"),
    *("log", "log1p", "expm1", "softplus"),
}
CONSTANTS = {"leaky_relu": (0.25,), "clamp": (-0.5, 3.7)}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def program_of(operation):
    """A program of numbers: a condition is compared for, or made a number of."""
    kinds = OPERATIONS[operation].arguments
    if operation == "where":
        instructions = (Instruction("lt", (0, 1)), Instruction("where", (2, 0, 1)))
        return Program(("x", "y"), instructions, (3,))
    arguments = tuple(range(len(kinds)))
    own = Instruction(operation, arguments, CONSTANTS.get(operation, ()))
    names, number = ("x", "y", "z")[: len(kinds)], len(kinds)
    if OPERATIONS[operation].result is Kind.NUMBER:
        return Program(names, (own,), (number,))
    # The two numbers follow the condition, as constants.
    chosen = (Instruction("constant", (), (value,)) for value in (1.0, 0.0))
    return Program(
        names,
        (own, *chosen, Instruction("where", (number, number + 1, number + 2))),
        (number + 3,),
    )


def evaluated(program, inputs):
    """What compiled code makes of vectors of one length."""
    isa, dtype = host_isa(), inputs[0].dtype
    lanes = Lanes(8 * dtype.itemsize, isa.lanes(dtype.itemsize), isa.fma)
    module = ir.Module("operation")
    function = ir.Function(module, ir.FunctionType(VOID, [I64] * (1 + len(inputs))), "run")
    builder = ir.IRBuilder(function.append_basic_block())
    out, *addresses = function.args
    given = {
        name: lanes.load(builder, address)
        for name, address in zip(program.inputs, addresses, strict=True)
    }
    (value,) = pointwise.lower(program, _Vectors(lanes, builder), given)
    lanes.store(builder, value, out)
    builder.ret_void()
    linked = Linked(object_code(str(module), isa, ("run",), jit=False), ["run"])
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(function.args))(linked.addresses[0])
    padded = [torch.nn.functional.pad(x, (0, -len(x) % lanes.count)) for x in inputs]
    found = torch.empty_like(padded[0])
    for start in range(0, len(found), lanes.count):
        run(*(x.data_ptr() + start * dtype.itemsize for x in (found, *padded)))
    return found[: len(inputs[0])]


def test_the_backend_names_what_is_lowered():
    assert BACKEND.operations == pointwise.OPERATIONS == OPERATIONS.keys()


@dtypes
@pytest.mark.parametrize("operation", sorted(pointwise.OPERATIONS - ROUNDED - {"constant"}))
def test_exact_operations_have_torchs_bits(operation, dtype):
    program = program_of(operation)
    special = [sign * x for x in SPECIAL for sign in (1, -1)] + [math.nan]
    pairs = torch.tensor(list(itertools.product(special, special)), dtype=dtype)
    x, y = (x.contiguous() for x in pairs.unbind(1))
    inputs = [x, y, y + 1][: len(program.inputs)]
    (expected,) = evaluate_tensors(program, inputs)
    found = evaluated(program, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    # Of zeros of either sign the extremum has any, in torch too, by the place in a tensor.
    if operation not in ("minimum", "maximum"):
        held = ~expected.isnan()
        assert torch.equal(found[held].signbit(), expected[held].signbit())


@dtypes
@pytest.mark.parametrize("operation", sorted(ROUNDED))
def test_rounded_operations_keep_special_values(operation, dtype):
    program = program_of(operation)
    values = [sign * x for x in (0.0, 1e-30, 88.0, 1e38, math.inf) for sign in (1, -1)]
    x = torch.tensor([*values, math.nan, 100.0, -100.0, 800.0, -800.0], dtype=dtype)
    inputs = [x, x.tanh()][: len(program.inputs)]
    (expected,) = evaluate_tensors(program, inputs)
    found = evaluated(program, inputs)
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=tiny, equal_nan=True)
    zeros = expected == 0
    assert torch.equal(found[zeros].signbit(), expected[zeros].signbit())


@dtypes
@pytest.mark.parametrize("operation", ["exp", "sigmoid"])
def test_results_underflow_gradually(operation, dtype):
    # Where they are subnormal, and just above: a gate of 1e-38 times a state of 3e38 is no zero.
    tiny = math.log(torch.finfo(dtype).tiny)
    x = torch.linspace(tiny - 20, tiny + 2, 500, dtype=torch.float64).to(dtype)
    program = program_of(operation)
    (expected,) = evaluate_tensors(program, [x])
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(evaluated(program, [x]), expected, rtol=rtol, atol=2 * smallest)


@dtypes
@pytest.mark.parametrize("operation", sorted(ROUNDED))
def test_rounded_operations_are_accurate(operation, dtype):
    generator = torch.Generator().manual_seed(0)
    program = program_of(operation)
    x = torch.randn(50_000, generator=generator, dtype=dtype) * 4
    if operation.startswith("log"):
        x = x.abs()
    inputs = [x, torch.sigmoid(x)][: len(program.inputs)]
    found = evaluated(program, inputs).double()
    (exact,) = evaluate_tensors(program, [each.double() for each in inputs])
    # Factors 1 - h near 0 are differences of numbers near 1.
    scale = exact.abs() if len(inputs) == 1 else x.double().abs()
    error = (found - exact).abs() / scale.clamp(min=torch.finfo(dtype).tiny)
    assert error.max() < 4 * torch.finfo(dtype).eps


#: (function, units in the last place, and the range of its argument by the bits of an element).
LOGARITHMS = {
    "log": (np.log, 1.0, {32: (1e-45, 3e38), 64: (5e-324, 1.7e308)}),
    "log1p": (np.log1p, 2.0, {32: (1e-7 - 1, 3e38), 64: (1e-15 - 1, 1.7e308)}),
    "expm1": (np.expm1, 2.0, {32: (-3e38, 88.0), 64: (-1.7e308, 709.0)}),
    "softplus": (lambda x: np.log1p(np.exp(x)), 2.5, {32: (-87.0, 20.0), 64: (-708.0, 20.0)}),
}


@dtypes
@pytest.mark.parametrize("operation", list(LOGARITHMS))
def test_logarithms_in_units_in_the_last_place(operation, dtype):
    wide = np.float64 if dtype is torch.float32 else np.longdouble
    if np.finfo(wide).eps > torch.finfo(dtype).eps / 100:
        pytest.skip("there is no wider arithmetic on this machine")
    function, allowed, ranges = LOGARITHMS[operation]
    low, high = ranges[torch.finfo(dtype).bits]
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(20_000, generator=generator, dtype=dtype)
    most = math.log10(torch.finfo(dtype).max)
    sizes = torch.logspace(-1.07 * most, most, 20_001, dtype=torch.float64).to(dtype)
    x = torch.cat([near, 20 * near, 1 + 0.01 * near, sizes, -sizes])
    x = x[(x >= low) & (x <= high) & (x != 0)]
    found = evaluated(program_of(operation), [x]).numpy()
    exact = function(x.numpy().astype(wide))
    unit = np.spacing(np.abs(exact).astype(found.dtype)).astype(wide)
    assert float((np.abs(found.astype(wide) - exact) / unit).max()) < allowed
