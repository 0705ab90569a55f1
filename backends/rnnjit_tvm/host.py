"""The vector unit here, and the register tiles that a vector unit gets."""

from __future__ import annotations

import llvmlite.binding as llvm

from rnnjit.codegen import Isa, isa_of


def host_isa() -> Isa:
    """The instruction set of this machine, capped by the environment variable RNNJIT_ISA.

    Raises:
        ValueError: RNNJIT_ISA names an instruction set that is unknown, or not this machine's.
    """
    features = llvm.get_host_cpu_features()
    return isa_of(llvm.get_host_cpu_name(), features, llvm.get_process_triple())


def tiles(isa: Isa) -> tuple[tuple[int, int], ...]:
    """Register tiles, largest first: (rows, most vectors beside each other).

    Rows are powers of two, each half of the one before, down to 1. A tile's accumulators fit into
    the registers beside a vector of weights for each column and one broadcast; two multiply-adds a
    cycle at four cycles' latency want at least eight accumulators.
    """
    if isa.registers >= 32:
        return ((8, 3), (4, 6), (2, 8), (1, 8))
    return ((4, 3), (2, 5), (1, 8))
