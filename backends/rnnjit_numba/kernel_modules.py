"""The modules of LLVM IR that a kernel library is made of: numba as a compiler front-end.

numba infers types and lowers to LLVM; optimisation, code generation, the cache and loading are this
package's own (`object_code`, `library`), so that a process that finds its kernels cached imports no
numba.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from llvmlite import ir

from rnnjit.codegen import Isa
from rnnjit.codegen.subnormals import MXCSR_FLUSH, can_flush
from rnnjit.ir import CellSpec
from rnnjit_numba.backward import add_backward
from rnnjit_numba.context import CodegenContext, add_common
from rnnjit_numba.forward import add_forward
from rnnjit_numba.numba_lowering import lower

_HOW = ("alone", "team")
_DECLARATIONS = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
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


class KernelModule(NamedTuple):
    """A part of a kernel library, which may call the functions of earlier parts.

    Attributes:
        text: LLVM IR, not optimised.
        symbols: the functions that others call.
    """

    text: str
    symbols: tuple[str, ...]


def kernel_modules(isa: Isa, bits: int, cell: CellSpec) -> Iterator[KernelModule]:
    """The kernels of a cell for elements of `bits` bits; each is lowered when it is requested.

    Together they define, for each kernel, `<kernel>_alone(arguments)` for a single thread and
    `<kernel>_team(arguments)` to be run by every thread of an OpenMP team; `arguments` is the
    address of the kernel's argument block (see `arguments`). The backward kernel flushes subnormal
    numbers to zero where the processor is slow with them, and leaves the caller's setting as it
    was; `backward_exact_alone` and `backward_exact_team` follow that setting.
    """
    context = CodegenContext.of(isa, bits, cell)
    # The modules that take LLVM longest come first, so that it can begin early.
    common = add_common(context)
    yield _lowered(context)
    add_backward(context, common)
    yield _lowered(context, "backward", {"backward": can_flush(isa), "backward_exact": False})
    add_forward(context, common)
    yield _lowered(context, "forward", {"forward": False})


def _lowered(
    context: CodegenContext, kernel: str = "common", entries: Mapping[str, bool] | None = None
) -> KernelModule:
    """The functions added since the last module: a kernel, or functions for other modules.

    Args:
        context: has the functions.
        kernel: the kernel's name.
        entries: names of the kernel's entries, and whether they flush subnormal numbers; None for
            functions that other modules call.
    """
    functions = context.symbols.take()
    module = ir.Module(kernel)
    for symbol, function in functions.items():
        lower(function, symbol, module)
    if entries is None:
        return KernelModule(str(module), tuple(functions))
    symbol, text = context.symbols.symbol(kernel), str(module) + _DECLARATIONS
    for name, flush in entries.items():
        before, after = (_FLUSH, _RESTORE) if flush else ("", "")
        text += _ENTRIES.format(name=name, symbol=symbol, before=before, after=after)
    return KernelModule(text, tuple(f"{name}_{how}" for name in entries for how in _HOW))
