"""A whole stack as one object file for any processor of LLVM's: a program without Python.

    int32 NAME_forward(int64 T, int64 B, const int64 *batch_sizes, const real *x, states at first,
                       const void *weights, real *y, last states, void *scratch)
    int64 NAME_scratch_bytes(int64 B, int64 N)

and, for a stack of one direction, step by step (see `program_step`):

    int32 NAME_prepare(const void *weights, void *prepared)
    int32 NAME_step(int64 B, const void *prepared, const real *x, states, real *y, void *scratch)
    int64 NAME_prepared_bytes(), NAME_step_scratch_bytes(int64 B)

The sizes of the layers and the offsets of their weights are constants of the program. It runs on
the calling thread alone, keeps no state between calls and allocates nothing: see `scratch` for what
the caller allocates. `program.h` says what the functions take and return.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from llvmlite import ir

from rnnjit import LayerSpec, RNNSpec
from rnnjit.artifact.weights import Place, layout
from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import Kind
from rnnjit_numba.arguments import ForwardArguments, state_argument
from rnnjit_numba.context import CodegenContext, add_common
from rnnjit_numba.forward import add_forward
from rnnjit_numba.forward_sizes import ForwardSizes
from rnnjit_numba.numba_lowering import lower
from rnnjit_numba.program_arguments import add_arguments
from rnnjit_numba.scratch import Layout
from rnnjit_numba.simd import I32, I64, load
from rnnjit_numba.tile_choice import program_tiling

#: What the names of the functions for steps end with.
STEPPING = ("prepare", "step", "prepared_bytes", "step_scratch_bytes")


def functions(spec: RNNSpec, name: str) -> tuple[str, ...]:
    """The names of a program's public functions, the first two those for whole sequences."""
    stepping = () if spec.bidirectional else STEPPING
    return tuple(f"{name}_{each}" for each in ("forward", "scratch_bytes", *stepping))


def text(spec: RNNSpec, isa: Isa, dtype: torch.dtype, name: str) -> str:
    """LLVM IR of the program, not optimised; see `functions` for what is public."""
    context = CodegenContext.of(isa, dtype, spec.cell)
    common = add_common(context)
    add_forward(context, common)
    memory_layout = Layout.of(spec, isa, dtype)
    add_arguments(context, common, spec, memory_layout, program_tiling(isa).code)
    module = ir.Module(name)
    for symbol, function in context.symbols.take().items():
        lower(function, symbol, module)
    program = _Program(module, context, spec, isa, dtype, memory_layout)
    definitions = {
        "forward": program.define_forward,
        "scratch_bytes": program.define_scratch_bytes,
        "prepare": program.define_prepare,
        "step": program.define_step,
        "prepared_bytes": program.define_prepared_bytes,
        "step_scratch_bytes": program.define_step_scratch_bytes,
    }
    for public in functions(spec, name):
        definitions[public.removeprefix(f"{name}_")](public)
    return str(module)


class _Program:
    """Defines the public functions, which call the kernel's functions for each layer.

    They are emitted instruction by instruction: a few stores of arguments, and a call, per layer.
    """

    def __init__(
        self,
        module: Any,
        context: CodegenContext,
        spec: RNNSpec,
        isa: Isa,
        dtype: torch.dtype,
        memory_layout: Layout,
    ) -> None:
        self.module, self.context, self.spec, self.isa = module, context, spec, isa
        self.kind = Kind(dtype, spec.cell)
        self.layout, self.size = memory_layout, context.lanes.itemsize
        self.states = len(spec.cell.states)

    def define_forward(self, name: str) -> None:
        """Define `NAME_forward`."""
        pointers = 5 + 2 * self.states
        builder, (T, B, sizes, x, *rest) = self._function(name, I32, [I64, I64], pointers)
        S = self.states
        first, (weights, y, *last), room = rest[:S], rest[S:-1], rest[-1]
        N = self._call(builder, "count", T, B, sizes)
        with builder.if_then(builder.icmp_signed("<", N, I64(0))):
            builder.ret(I32(1))
        block = self._call(builder, "begin", T, B, N, sizes, room, I64(0))
        strides = [builder.mul(B, I64(width)) for width in self._state_bytes()]
        zeros = self._address(builder, block, 2)
        before, steps = [], []
        for state, stride in zip(first, strides, strict=True):
            absent = builder.icmp_signed("==", state, I64(0))
            with builder.if_then(absent):
                self._call(builder, "zeros", zeros, B)
            before.append(builder.select(absent, zeros, state))
            steps.append(builder.select(absent, I64(0), stride))
        packed = self._address(builder, block, 1)
        for index, (layer, places) in enumerate(self._layers()):
            out = self._rows_after(builder, index, y, block)
            self._set_layer(builder, block, packed, layer)
            tensors = {"x": x, "y": out, **_weights(builder, weights, places)}
            self._set(builder, block, tensors, before, last)
            self._call(builder, "forward", block, I64(0), I64(1))
            before = [builder.add(*pair) for pair in zip(before, steps, strict=True)]
            last = [builder.add(*pair) for pair in zip(last, strides, strict=True)]
            x = out
        builder.ret(I32(0))

    def define_scratch_bytes(self, name: str) -> None:
        """Define `NAME_scratch_bytes`."""
        builder, (B, N) = self._function(name, I64, [I64, I64], 0)
        builder.ret(self._call(builder, "scratch_bytes", B, N, I64(0)))

    def define_prepare(self, name: str) -> None:
        """Define `NAME_prepare`, which packs the weights of all layers."""
        builder, (weights, prepared) = self._function(name, I32, [], 2)
        self._refuse_unaligned(builder, prepared)
        block = self._call(builder, "begin", I64(1), I64(0), I64(0), I64(0), prepared, I64(1))
        none = [I64(0)] * self.states
        for packed, (layer, places) in zip(
            self._prepared(builder, prepared), self._layers(), strict=True
        ):
            self._set_layer(builder, block, packed, layer)
            self._set(builder, block, _weights(builder, weights, places), none, none)
            self._call(builder, "pack_task", block, I64(0), I64(1))
        builder.ret(I32(0))

    def define_step(self, name: str) -> None:
        """Define `NAME_step`, which reads what was prepared."""
        pointers = 4 + self.states
        builder, (B, prepared, x, *rest) = self._function(name, I32, [I64], pointers)
        states, y, room = rest[: self.states], *rest[self.states :]
        self._refuse_unaligned(builder, prepared)
        with builder.if_then(builder.icmp_signed("<", B, I64(0))):
            builder.ret(I32(1))
        block = self._call(builder, "begin", I64(1), B, B, I64(0), room, I64(1))
        strides = [builder.mul(B, I64(width)) for width in self._state_bytes()]
        zero, one = I64(0), I64(1)
        for index, (packed, (layer, _)) in enumerate(
            zip(self._prepared(builder, prepared), self._layers(), strict=True)
        ):
            out = self._rows_after(builder, index, y, block)
            self._set_layer(builder, block, packed, layer)
            self._set(builder, block, {"x": x, "y": out}, states, states)
            # One step of all rows, in direction 0, of weights that are packed: see `forward`.
            whole = (zero, zero, B, one, zero, one, zero)
            alone = (zero, zero, zero, zero, one, zero, zero, zero, zero)
            self._call(builder, "recur", block, *whole, *alone)
            states = [builder.add(*pair) for pair in zip(states, strides, strict=True)]
            x = out
        builder.ret(I32(0))

    def define_prepared_bytes(self, name: str) -> None:
        """Define `NAME_prepared_bytes`."""
        builder, _ = self._function(name, I64, [], 0)
        builder.ret(I64(self.layout.prepared_bytes))

    def define_step_scratch_bytes(self, name: str) -> None:
        """Define `NAME_step_scratch_bytes`."""
        builder, (B,) = self._function(name, I64, [I64], 0)
        builder.ret(self._call(builder, "scratch_bytes", B, B, I64(1)))

    def _function(
        self, name: str, result: Any, integers: list[Any], pointers: int
    ) -> tuple[Any, list[Any]]:
        """A public function's builder and its arguments, pointers as integers."""
        kinds = [*integers, *[ir.PointerType()] * pointers]
        function = ir.Function(self.module, ir.FunctionType(result, kinds), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        count = len(integers)
        addresses = [builder.ptrtoint(a, I64) for a in function.args[count:]]
        return builder, [*function.args[:count], *addresses]

    def _call(self, builder: Any, name: str, *args: Any) -> Any:
        return builder.call(self.module.globals[self.context.symbols.symbol(name)], args)

    def _refuse_unaligned(self, builder: Any, address: Any) -> None:
        low = builder.and_(address, I64(63))
        with builder.if_then(builder.icmp_signed("!=", low, I64(0))):
            builder.ret(I32(1))

    def _layers(self) -> Iterator[tuple[LayerSpec, list[tuple[str, Place]]]]:
        """Each layer, with the arguments that its weights are and where these lie."""
        where = iter(layout(self.spec, self.size).places)
        for layer in self.spec.layers:
            kinds = ["w_ih", "w_hh", *(["b_ih", "b_hh"] if layer.bias else [])]
            kinds += ["w_hr"] if layer.proj_size else []
            names = [f"{kind}_{d}" for d in range(layer.num_directions) for kind in kinds]
            yield layer, [(name, next(where)) for name in names]

    def _state_bytes(self) -> list[int]:
        """Bytes of each state of a layer, for one sequence."""
        layer = self.spec.layer(0)
        return [layer.num_directions * width * self.size for width in layer.state_sizes]

    def _prepared(self, builder: Any, prepared: Any) -> list[Any]:
        """The addresses of the packed weights of each layer."""
        found, offset = [], self.layout.block
        for size in self.layout.prepared:
            found.append(builder.add(prepared, I64(offset)))
            offset += size
        return found

    def _address(self, builder: Any, block: Any, behind: int) -> Any:
        """One of the addresses before the block (see `program_arguments`)."""
        return load(builder, builder.sub(block, I64(8 * behind)), I64, 8)

    def _rows_after(self, builder: Any, index: int, y: Any, block: Any) -> Any:
        """Where the rows after a layer are written: alternately, so that the last are in y."""
        if (self.spec.num_layers - 1 - index) % 2 == 0:
            return y
        return self._address(builder, block, 3)

    def _set_layer(self, builder: Any, block: Any, packed: Any, layer: LayerSpec) -> None:
        """Set the arguments that follow from a layer's sizes."""
        sizes = ForwardSizes.of(self.isa, self.kind, layer, direct=False)
        in_place = ForwardSizes.of(self.isa, self.kind, layer, direct=True)
        numbers = (*sizes[:4], in_place.packed, layer.input_size)
        self._call(builder, "set_layer", block, packed, *map(I64, numbers))

    def _set(
        self, builder: Any, block: Any, tensors: dict[str, Any], before: Any, after: Any
    ) -> None:
        """Set the arguments that are addresses of tensors, 0 for those that there are not."""
        first, *others = zip(before, after, strict=True)
        given = {"h0": first[0], "h_n": first[1], **tensors}
        addresses = {
            ForwardArguments._fields.index(field): given.get(field, I64(0)) for field in _TENSORS
        }
        for state, pair in enumerate(others, 1):
            for which, address in enumerate((*pair, I64(0))):
                addresses[state_argument(ForwardArguments, state, which)] = address
        for index, address in addresses.items():
            place = builder.inttoptr(builder.add(block, I64(8 * index)), ir.PointerType())
            builder.store(address, place, align=8)


#: The arguments that differ between layers, beside those of `set_layer`.
_TENSORS = (
    *("x", "h0", "y", "h_n", "w_ih_0", "w_hh_0", "b_ih_0", "b_hh_0"),
    *("w_ih_1", "w_hh_1", "b_ih_1", "b_hh_1", "w_hr_0", "w_hr_1"),
)


def _weights(builder: Any, weights: Any, places: list[tuple[str, Place]]) -> dict[str, Any]:
    """The addresses of a layer's weights."""
    return {name: builder.add(weights, I64(place.offset)) for name, place in places}
