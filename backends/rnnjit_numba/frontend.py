"""From Python kernels to LLVM IR: numba as a compiler front-end.

numba infers types and lowers to LLVM; optimisation, code generation, the cache and loading are this
package's own (`codegen`, `library`), so that a process that finds its kernels cached imports no
numba.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llvmlite import ir

from rnnjit.cpu import Isa
from rnnjit_numba.backward import add_backward
from rnnjit_numba.forward import add_forward
from rnnjit_numba.host import row_tiles
from rnnjit_numba.lanes import Lanes
from rnnjit_numba.lowering import lower
from rnnjit_numba.toolbox import Toolbox, add_common

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


class Part(NamedTuple):
    """A part of a kernel library, which calls the functions of parts before it.

    Attributes:
        text: LLVM IR, not optimised.
        symbols: the functions that others call.
    """

    text: str
    symbols: tuple[str, ...]


def parts(isa: Isa, bits: int) -> Iterator[Part]:
    """The kernels for elements of `bits` bits, in parts: lowered when the next one is asked for.

    Together they define, for each kernel, `<kernel>_alone(arguments)` for a single thread and
    `<kernel>_team(arguments)` to be run by every thread of an OpenMP team; `arguments` is the
    address of the kernel's argument block (see `arguments`).
    """
    tools = Toolbox(Lanes(bits, isa.lanes(bits // 8), isa.fma), row_tiles(isa))
    # What LLVM takes longest over comes first, so that it can begin early.
    common = add_common(tools)
    yield _part(tools)
    add_backward(tools, common)
    yield _part(tools, "backward")
    add_forward(tools, common)
    yield _part(tools, "forward")


def _part(tools: Toolbox, kernel: str | None = None) -> Part:
    """The functions added since the part before: a kernel, or functions for other parts."""
    functions = tools.units.take()
    module = ir.Module(kernel or "common")
    for symbol, function in functions.items():
        lower(function, symbol, module)
    if kernel is None:
        return Part(str(module), tuple(functions))
    entries = _ENTRIES.format(name=kernel, symbol=tools.units.symbol(kernel))
    return Part(str(module) + entries, (f"{kernel}_alone", f"{kernel}_team"))
