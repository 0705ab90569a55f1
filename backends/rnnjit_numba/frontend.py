"""From Python kernels to LLVM IR: numba as a compiler front-end.

numba infers types and lowers to LLVM; optimisation, code generation, the cache and loading are this
package's own (`codegen`, `library`), so that a process that finds its kernels cached imports no
numba.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable

import llvmlite.binding as llvm
from numba.core import compiler, types
from numba.core.registry import cpu_target

from rnnjit_numba.backward import add_backward
from rnnjit_numba.forward import add_forward
from rnnjit_numba.host import Isa
from rnnjit_numba.lanes import Lanes
from rnnjit_numba.toolbox import Toolbox, add_common

#: numba's calling convention (result and exception slots first) behind a plain C function.
_UNIT = """
declare i32 @{lowered}(ptr, ptr, {types})

define void @{symbol}({parameters}) alwaysinline {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @{lowered}(ptr %result, ptr %exception, {parameters})
  ret void
}}
"""

_ENTRIES = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @{symbol}(i64, i64, i64)

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

KERNELS = ("forward", "backward")


def kernels_ir(isa: Isa, bits: int) -> str:
    """LLVM IR, not optimised, of the kernels for elements of `bits` bits.

    It defines, for each kernel, `<kernel>_alone(arguments)` for a single thread and
    `<kernel>_team(arguments)` to be run by every thread of an OpenMP team; `arguments` is the
    address of the kernel's argument block (see `arguments`).
    """
    # Most of the time of a collection would be spent on objects that numba keeps for good.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _linked(isa, bits)
    finally:
        if collecting:
            gc.enable()


def _linked(isa: Isa, bits: int) -> str:
    tools = Toolbox(Lanes(bits, isa.lanes(bits // 8), isa.fma), isa.row_tiles)
    common = add_common(tools)
    add_forward(tools, common)
    add_backward(tools, common)
    linked = llvm.parse_assembly("")
    for symbol, function in tools.units.functions.items():
        linked.link_in(llvm.parse_assembly(_lower(symbol, function)))
    for name in KERNELS:
        entries = _ENTRIES.format(name=name, symbol=tools.units.symbol(name))
        linked.link_in(llvm.parse_assembly(entries))
    return str(linked)


def _lower(symbol: str, function: Callable[..., None]) -> str:
    """LLVM IR of one function of int64 values, defining `symbol`."""
    arity = len(inspect.signature(function).parameters)
    flags = compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.nrt = False
    result = compiler.compile_extra(
        cpu_target.typing_context,
        cpu_target.target_context,
        function,
        (types.int64,) * arity,
        types.void,
        flags,
        {},
    )
    wrapper = _UNIT.format(
        lowered=result.fndesc.llvm_func_name,
        symbol=symbol,
        types=", ".join(["i64"] * arity),
        parameters=", ".join(f"i64 %a{i}" for i in range(arity)),
    )
    library = str(result.library.get_llvm_str())
    return library + wrapper.replace(f"declare i32 @{result.fndesc.llvm_func_name}", ";")
