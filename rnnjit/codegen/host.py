"""The vector unit of this machine. It imports llvmlite, and nothing that is light imports it."""

from __future__ import annotations

import llvmlite.binding as llvm

from rnnjit.codegen.isa import Isa, isa_of


def host_isa() -> Isa:
    """The instruction set of this machine, capped by the environment variable RNNJIT_ISA.

    Raises:
        ValueError: RNNJIT_ISA names an instruction set that is unknown, or not this machine's.
    """
    features = llvm.get_host_cpu_features()
    return isa_of(llvm.get_host_cpu_name(), features, llvm.get_process_triple())
