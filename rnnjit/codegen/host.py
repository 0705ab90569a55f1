"""The instruction set of this machine; a module of its own, since it imports llvmlite."""

from __future__ import annotations

import llvmlite.binding as llvm

from rnnjit.codegen import amx_permission
from rnnjit.codegen.isa import Isa, has_amx, isa_of


def host_isa() -> Isa:
    """The instruction set of this machine, capped by the environment variable RNNJIT_ISA.

    Raises:
        ValueError: RNNJIT_ISA names an instruction set that is unknown or that this machine lacks.
    """
    features = llvm.get_host_cpu_features()
    amx = has_amx(features) and not amx_permission.refused()
    return isa_of(llvm.get_host_cpu_name(), features, llvm.get_process_triple(), amx=amx)
