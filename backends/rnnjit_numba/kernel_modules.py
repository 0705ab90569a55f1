"""The modules of LLVM IR that a kernel library is made of: numba as a compiler front-end.

numba infers types and lowers to LLVM; optimisation, code generation, the cache and loading are this
package's own (`object_code`, `library`), so that a process that finds its kernels cached imports no
numba.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llvmlite import ir

from rnnjit.cells import Cell
from rnnjit.codegen import Isa
from rnnjit_numba.backward import add_backward
from rnnjit_numba.context import CodegenContext, add_common
from rnnjit_numba.forward import add_forward
from rnnjit_numba.numba_lowering import lower

_ENTRIES = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()

define void @{name}_alone(ptr %arguments) {{
  %block = ptrtoint ptr %arguments to i64
  call void @{symbol}(i64 %block, i64 0, i64 1)
  ret void
}}

define void @{name}_team(ptr %arguments) {{
  %block = ptrtoint ptr %arguments to i64
  %thread = call i32 @omp_get_thread_num()
  %threads = call i32 @omp_get_num_threads()
  %thread.wide = zext i32 %thread to i64
  %threads.wide = zext i32 %threads to i64
  call void @{symbol}(i64 %block, i64 %thread.wide, i64 %threads.wide)
  ret void
}}
"""


class KernelModule(NamedTuple):
    """A part of a kernel library, which may call the functions of earlier parts.

    Attributes:
        text: LLVM IR, not optimised.
        symbols: the functions that others call.
    """

    text: str
    symbols: tuple[str, ...]


def kernel_modules(isa: Isa, bits: int, cell: Cell) -> Iterator[KernelModule]:
    """The kernels of a cell for elements of `bits` bits; each is lowered when it is requested.

    Together they define, for each kernel, `<kernel>_alone(arguments)` for a single thread and
    `<kernel>_team(arguments)` to be run by every thread of an OpenMP team; `arguments` is the
    address of the kernel's argument block (see `arguments`).
    """
    context = CodegenContext.of(isa, bits, cell)
    # The modules that take LLVM longest come first, so that it can begin early.
    common = add_common(context)
    yield _lowered(context)
    add_backward(context, common)
    yield _lowered(context, "backward")
    add_forward(context, common)
    yield _lowered(context, "forward")


def _lowered(context: CodegenContext, kernel: str | None = None) -> KernelModule:
    """The functions added since the last module: a kernel, or functions for other modules."""
    functions = context.symbols.take()
    module = ir.Module(kernel or "common")
    for symbol, function in functions.items():
        lower(function, symbol, module)
    if kernel is None:
        return KernelModule(str(module), tuple(functions))
    entries = _ENTRIES.format(name=kernel, symbol=context.symbols.symbol(kernel))
    return KernelModule(str(module) + entries, (f"{kernel}_alone", f"{kernel}_team"))
