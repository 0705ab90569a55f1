"""From LLVM IR to object code for one instruction set."""

from __future__ import annotations

import llvmlite.binding as llvm

from rnnjit_numba.host import Isa


def target_machine(isa: Isa) -> llvm.TargetMachine:
    """LLVM's code generator for an instruction set, which need not be this machine's."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(isa.triple)
    return target.create_target_machine(
        cpu=isa.cpu,
        features=isa.features,
        opt=3,
        reloc="static",
        codemodel="jitdefault",
        jit=True,
    )


def optimised(text: str, isa: Isa, entries: tuple[str, ...]) -> llvm.ModuleRef:
    """Parse LLVM IR, hide all but the functions in `entries`, and optimise the whole at once."""
    module = llvm.parse_assembly(text)
    module.triple = isa.triple
    machine = target_machine(isa)
    module.data_layout = str(machine.target_data)
    for function in module.functions:
        if not function.is_declaration and function.name not in entries:
            function.linkage = llvm.Linkage.internal
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def object_code(text: str, isa: Isa, entries: tuple[str, ...]) -> bytes:
    """The object file of LLVM IR, optimised, with the symbols `entries`."""
    module = optimised(text, isa, entries)
    return bytes(target_machine(isa).emit_object(module))
