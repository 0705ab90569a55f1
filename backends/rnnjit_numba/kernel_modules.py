"""The modules of LLVM IR that a kernel library is made of: numba as a compiler front-end.

numba infers types and lowers to LLVM; optimisation, code generation, the cache and loading are this
package's own (`object_code`, `library`), so that a process that finds its kernels cached imports no
numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from llvmlite import ir

from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.subnormals import MXCSR_FLUSH, can_flush
from rnnjit.ir import CellSpec
from rnnjit_numba.backward import add_backward
from rnnjit_numba.context import CodegenContext, add_common
from rnnjit_numba.direct import DIRECT_ARGUMENTS, TRANSPOSED_ARGUMENTS, direct, direct_transposed
from rnnjit_numba.forward import add_forward
from rnnjit_numba.numba_lowering import lower
from rnnjit_numba.simd import SHARED, KernelPart
from rnnjit_numba.tiles import OUTER_ARGUMENTS

_HOW = ("alone", "team")
_DECLARATIONS = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.tilerelease()
"""
_ENTRIES = """
define void @{name}_alone(ptr %arguments) {{{before}
  %block = ptrtoint ptr %arguments to i64
  call void @{symbol}(i64 %block, i64 0, i64 1){after}
  ret void
}}

define void @{name}_team(ptr %arguments) {{{before}
  %block = ptrtoint ptr %arguments to i64
  %thread = call i32 @omp_get_thread_num()
  %threads = call i32 @omp_get_num_threads()
  %thread.wide = zext i32 %thread to i64
  %threads.wide = zext i32 %threads to i64
  call void @{symbol}(i64 %block, i64 %thread.wide, i64 %threads.wide){after}
  ret void
}}
"""
_FLUSH = f"""
  %callers = alloca i32
  %flushing = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %callers)
  %control = load i32, ptr %callers
  %control.flushing = or i32 %control, {MXCSR_FLUSH}
  store i32 %control.flushing, ptr %flushing
  call void @llvm.x86.sse.ldmxcsr(ptr %flushing)"""
_RESTORE = """
  call void @llvm.x86.sse.ldmxcsr(ptr %callers)"""
#: A thread whose tiles hold something has more to save when another one runs in its place.
_RELEASE = """
  call void @llvm.x86.tilerelease()"""


class KernelModule(NamedTuple):
    """A part of a kernel library, which may call the functions of earlier parts.

    Attributes:
        text: LLVM IR, not optimised.
        symbols: the functions that others call.
    """

    text: str
    symbols: tuple[str, ...]


def kernel_modules(
    isa: Isa, dtype: torch.dtype, cell: CellSpec, quantized: bool = False
) -> Iterator[KernelModule]:
    """The kernels of a cell for tensors of a dtype; each is lowered when it is requested.

    Together they define, for each kernel, `<kernel>_alone(arguments)` for a single thread and
    `<kernel>_team(arguments)` to be run by every thread of an OpenMP team; `arguments` is the
    address of the kernel's argument block (see `arguments`). The backward kernel flushes subnormal
    numbers to zero where the processor is slow with them, and leaves the caller's setting as it
    was; `backward_exact_alone` and `backward_exact_team` follow that setting.

    There is a backward kernel if `Kind.has_backward`.
    """
    context = CodegenContext.of(isa, dtype, cell, quantized=quantized)
    common = add_common(context)
    if not Kind(dtype, cell, quantized).has_backward:
        add_forward(context, common)
        yield _lowered(context, "forward", {"forward": False})
        return
    shared = tuple(context.symbols.functions)
    add_backward(context, common)
    entries = {"backward": can_flush(isa), "backward_exact": False}
    yield _lowered(context, "backward", entries, shared)
    add_forward(context, common)
    yield _lowered(context, "forward", {"forward": False})


def tile_modules(
    isa: Isa, dtype: torch.dtype, cell: CellSpec, quantized: bool = False
) -> Iterator[KernelModule]:
    """The register tiles for tensors of a dtype: the same for the kernels of every cell.

    Those of int8 matrices are part of their kernels.
    """
    if quantized:
        return
    context = CodegenContext.of(isa, dtype, cell)
    tiles, storage = context.tiles, context.storage
    first, second = [context.product_tile], [(direct(storage), DIRECT_ARGUMENTS)]
    if Kind(dtype, cell).has_backward:
        first.append((direct_transposed(storage), TRANSPOSED_ARGUMENTS))
        second.append((tiles.outer(), OUTER_ARGUMENTS))
    # Two modules that take LLVM about as long, so that it can optimise them at once.
    for parts in (first, second):
        module = ir.Module("tiles")
        for number, (tile, arguments) in enumerate(parts):
            lower(_calling(tile, arguments), f"unused_{number}", module)
        defined = [each.name for each in module.functions if each.linkage == SHARED]
        yield KernelModule(str(module), tuple(defined))


def _calling(tile: Any, arguments: int) -> Callable[[], None]:
    """A function for numba to lower, so that a tile's code is emitted; nothing calls it."""
    zeros = (0,) * arguments

    def unused() -> None:
        tile(*zeros)

    return unused


def _lowered(
    context: CodegenContext,
    kernel: str,
    entries: Mapping[str, bool],
    shared: tuple[str, ...] = (),
) -> KernelModule:
    """The functions added since the last module: a kernel.

    Args:
        context: has the functions.
        kernel: the kernel's name.
        entries: names of the kernel's entries, and whether they flush subnormal numbers.
        shared: the functions among them that other modules call.
    """
    module = KernelPart(kernel)
    for symbol, function in context.symbols.take().items():
        lower(function, symbol, module)
    symbol, text = context.symbols.symbol(kernel), str(module) + _DECLARATIONS
    for name, flush in entries.items():
        before, after = (_FLUSH, _RESTORE) if flush else ("", "")
        if context.amx is not None and context.amx.amx == "tiles":
            after += _RELEASE
        text += _ENTRIES.format(name=name, symbol=symbol, before=before, after=after)
    public = tuple(f"{name}_{how}" for name in entries for how in _HOW)
    return KernelModule(text, (*shared, *public))
