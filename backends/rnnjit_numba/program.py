"""A whole stack as one object file for any processor of LLVM's: a program without Python.

    int NAME_forward(int64_t T, int64_t B, const int64_t *batch_sizes, const real *x,
                     const real *h0, const void *weights, real *y, real *h_n, void *scratch)

The sizes of the layers and the offsets of their weights are constants of the program. It runs on
the calling thread alone, keeps no state between calls and allocates nothing (see `scratch`). It
returns 0, or 1 if T < 1 or the batch sizes are negative, increase, or do not begin with B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from rnnjit import RNNSpec
from rnnjit.artifact.weights import Place, layout
from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import LINE
from rnnjit_numba import memory
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import CodegenContext, CommonFunctions, add_common
from rnnjit_numba.forward import add_forward
from rnnjit_numba.numba_lowering import lower
from rnnjit_numba.plan import FEW_ROWS, TILE_ROWS
from rnnjit_numba.scratch import BLOCK, packed_bytes
from rnnjit_numba.simd import I32, I64, load
from rnnjit_numba.tile_choice import program_tiling


def text(spec: RNNSpec, isa: Isa, bits: int, symbol: str) -> str:
    """LLVM IR of the program, not optimised; `symbol` is the only public function."""
    context = CodegenContext.of(isa, bits, spec.cell)
    common = add_common(context)
    add_forward(context, common)
    _add_count(context)
    _add_zeros(context, common, spec)
    module = ir.Module(symbol)
    for name, function in context.symbols.take().items():
        lower(function, name, module)
    _define_entry(module, context, spec, isa, symbol)
    return str(module)


def _add_count(context: CodegenContext) -> None:
    """Write the number of rows, or -1 if the sizes are invalid, to an address."""
    read_int, write_int = memory.read_int(), memory.write_int()

    def count(T: int, B: int, sizes: int, to: int) -> None:
        total, before = T * B, B
        if sizes != 0:
            total = 0
            if T > 0 and read_int(sizes) != B:
                before = -1
            for t in range(T):
                size = read_int(sizes + 8 * t)
                before = -1 if size > before or size < 0 else size
                total += size
        if T < 1 or before < 0:
            total = -1
        write_int(to, total)

    context.symbols.add(count)


def _add_zeros(context: CodegenContext, common: CommonFunctions, spec: RNNSpec) -> None:
    """Write an initial state of zeros for one layer."""
    copy_rows, H, D = common.copy_rows, spec.hidden_size, spec.num_directions
    size = context.lanes.itemsize
    vectors = -(-H // context.lanes.count)

    def zeros(to: int, B: int) -> None:
        copy_rows(to, H * size, 0, 0, D * B, 0, vectors, H)

    context.symbols.add(zeros)


def _define_entry(
    module: Any, context: CodegenContext, spec: RNNSpec, isa: Isa, symbol: str
) -> None:
    """Define the program's one public function, which calls the kernel for each layer.

    It is emitted instruction by instruction: a few stores of arguments, and a call, per layer.
    """
    pointer = ir.PointerType()
    function = ir.Function(module, ir.FunctionType(I32, [I64, I64, *[pointer] * 7]), symbol)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    T, B = function.args[:2]
    sizes, x, h0, weights, y, h_n, room = (builder.ptrtoint(a, I64) for a in function.args[2:])
    size, D = context.lanes.itemsize, spec.num_directions
    width = D * spec.hidden_size * size
    base = _rounded_up(builder, room)
    _call(builder, context, "count", T, B, sizes, base)
    N = load(builder, base, I64, 8)
    with builder.if_then(builder.icmp_signed("<", N, I64(0))):
        builder.ret(I32(1))
    packed = builder.add(base, I64(BLOCK))
    largest = max(packed_bytes(spec, index, isa, size) for index in range(spec.num_layers))
    state = _rounded_up(builder, builder.add(packed, I64(D * largest)))
    states = builder.mul(B, I64(width))
    rows = _rounded_up(builder, builder.add(state, states))
    absent = builder.icmp_signed("==", h0, I64(0))
    with builder.if_then(absent):
        _call(builder, context, "zeros", state, B)
    h0 = builder.select(absent, state, h0)
    first_from = builder.select(absent, I64(0), states)
    shared = {
        "T": T,
        "B": B,
        "N": N,
        "window": N,
        "sizes": sizes,
        "slice_rows": B,
        "scratch": packed,
    }
    where = iter(layout(spec, size).places)
    for index in range(spec.num_layers):
        out = y if (spec.num_layers - 1 - index) % 2 == 0 else rows
        fields = {
            **shared,
            **_constants(builder, spec, index, isa, size, T, B),
            **_weights(builder, spec, weights, where),
            "x": x,
            "h0": h0,
            "y": out,
            "h_n": h_n,
        }
        block = builder.add(base, I64(8))
        for at, field in enumerate(ForwardArguments._fields):
            place = builder.inttoptr(builder.add(block, I64(8 * at)), pointer)
            builder.store(fields.get(field, I64(0)), place, align=8)
        _call(builder, context, "forward", block, I64(0), I64(1))
        x, h0, h_n = out, builder.add(h0, first_from), builder.add(h_n, states)
    builder.ret(I32(0))


def _constants(
    builder: Any, spec: RNNSpec, index: int, isa: Isa, size: int, T: Any, B: Any
) -> dict[str, Any]:
    """The arguments that say how a layer is computed: the plan of one thread (see `plan`)."""
    layer, lanes, vector = spec.layer(index), isa.lanes(size), isa.vector_bytes
    inputs, hidden = (-(-n // lanes) * lanes * vector for n in (layer.input_size, spec.hidden_size))
    vectors = -(-spec.hidden_size // lanes)
    single = builder.icmp_signed("==", T, I64(1))
    direct = builder.and_(single, builder.icmp_signed("<=", B, I64(FEW_ROWS)))
    hoist = builder.icmp_signed("<", B, I64(TILE_ROWS))

    def packing(count: int, otherwise: int = 0) -> Any:
        return builder.select(direct, I64(otherwise), I64(count))

    return {
        "I": I64(layer.input_size),
        "H": I64(spec.hidden_size),
        "P": I64(spec.hidden_size),
        "D": I64(spec.num_directions),
        "slices": I64(1),
        "stride": I64(1),
        "parts": I64(1),
        "hoist": builder.zext(hoist, I64),
        "direct": builder.zext(direct, I64),
        "tile": I64(program_tiling(isa).code),
        "packed_inputs": packing(inputs),
        "packed_row": packing(inputs + hidden),
        "packed": packing(vectors * (inputs + hidden + vector), vectors * vector),
    }


def _weights(builder: Any, spec: RNNSpec, weights: Any, where: Iterator[Place]) -> dict[str, Any]:
    """The addresses of a layer's weights, which are the next in the block."""
    kinds = ("w_ih", "w_hh", "b_ih", "b_hh") if spec.bias else ("w_ih", "w_hh")
    names = [f"{kind}_{d}" for d in range(spec.num_directions) for kind in kinds]
    return {name: builder.add(weights, I64(next(where).offset)) for name in names}


def _call(builder: Any, context: CodegenContext, name: str, *args: Any) -> None:
    builder.call(builder.module.globals[context.symbols.symbol(name)], args)


def _rounded_up(builder: Any, address: Any) -> Any:
    """The first address from `address` on at which a cache line begins."""
    return builder.and_(builder.add(address, I64(LINE - 1)), I64(-LINE))
