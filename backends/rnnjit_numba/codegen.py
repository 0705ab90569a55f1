"""From LLVM IR to object code for one instruction set."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm

from rnnjit.cpu import Isa


def target_machine(isa: Isa, *, jit: bool = True) -> llvm.TargetMachine:
    """LLVM's code generator for an instruction set, which need not be this machine's.

    Args:
        isa: what to generate for.
        jit: whether the code is loaded where it was made, or else linked by any linker.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(isa.triple)
    return target.create_target_machine(
        cpu=isa.cpu,
        features=",".join(isa.features),
        opt=3,
        reloc="static" if jit else "pic",
        codemodel="jitdefault" if jit else "default",
        jit=jit,
        abiname=isa.abi,
    )


def optimised(text: str, isa: Isa, symbols: tuple[str, ...]) -> llvm.ModuleRef:
    """Parse LLVM IR, hide all but the functions in `symbols`, and optimise the whole at once.

    Threads may do so at the same time: the module has a context of its own.
    """
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = isa.triple
    machine = target_machine(isa)
    module.data_layout = str(machine.target_data)
    for function in module.functions:
        if not function.is_declaration and function.name not in symbols:
            function.linkage = llvm.Linkage.internal
    # What numba would keep a function's Python globals in; nothing is in it.
    for variable in module.global_variables:
        variable.linkage = llvm.Linkage.internal
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # Tiles are unrolled as far as registers go; more would only take longer to compile.
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getModulePassManager()
    _unlocked(llvm.ffi.lib.LLVMPY_RunNewModulePassManager)(passes, module, builder)
    return module


def object_code(text: str, isa: Isa, symbols: tuple[str, ...], *, jit: bool = True) -> bytes:
    """The object file of LLVM IR, optimised, with the symbols `symbols`; see `target_machine`."""
    module, library = optimised(text, isa, symbols), llvm.ffi.lib
    emit = _unlocked(library.LLVMPY_TargetMachineEmitToMemory)
    with llvm.ffi.OutputString() as problem:
        buffer = emit(target_machine(isa, jit=jit), module, 1, problem)
        if not buffer:
            raise RuntimeError(str(problem))
    try:
        size = library.LLVMPY_GetBufferSize(buffer)
        return ctypes.string_at(library.LLVMPY_GetBufferStart(buffer), size)
    finally:
        library.LLVMPY_DisposeMemoryBuffer(buffer)


def _unlocked(function: Any) -> Any:
    """A function of llvmlite's, without its lock.

    llvmlite lets one thread at a time into LLVM, whatever it does there. LLVM itself asks only that
    threads do not share a context.
    """
    return getattr(function, "_cfn", function)
