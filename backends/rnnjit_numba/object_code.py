"""From LLVM IR to object code for one instruction set."""

from __future__ import annotations

import llvmlite.binding as llvm

from rnnjit.codegen import Isa
from rnnjit_numba import private


def target_machine(isa: Isa, *, jit: bool = True) -> llvm.TargetMachine:
    """LLVM's code generator for an instruction set, which need not be this machine's.

    Args:
        isa: what to generate for.
        jit: whether the code is loaded into this process; if not, any linker can link it.
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
    """Parse LLVM IR, hide all but the functions in `symbols`, and optimise it as a whole.

    It is thread-safe: each module has its own LLVM context.
    """
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = isa.triple
    machine = target_machine(isa)
    module.data_layout = str(machine.target_data)
    for function in module.functions:
        if not function.is_declaration:
            public = function.name in symbols
            function.linkage = llvm.Linkage.external if public else llvm.Linkage.internal
    # Variables in which numba would keep a function's Python globals; kernels have none.
    for variable in module.global_variables:
        variable.linkage = llvm.Linkage.internal
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # Tiles are unrolled as far as registers allow; more would only take longer to compile.
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getModulePassManager()
    private.run_passes(passes, module, builder)
    return module


def object_code(text: str, isa: Isa, symbols: tuple[str, ...], *, jit: bool = True) -> bytes:
    """The object file of optimised LLVM IR, exporting `symbols`; for `jit` see `target_machine`."""
    return private.emit_object(target_machine(isa, jit=jit), optimised(text, isa, symbols))
