"""The machine's vector unit, as far as the kernels care."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

ISA_VARIABLE = "RNNJIT_ISA"


@dataclass(frozen=True)
class Isa:
    """What kernels are generated for.

    Attributes:
        name: "avx512", "avx2", "neon" or "plain".
        vector_bytes: width of a vector register.
        registers: how many vector registers there are.
        fma: whether a fused multiply-add is one instruction.
        cpu: LLVM's name of the processor.
        features: LLVM's names of what it has, each behind its + or -.
        triple: LLVM's target triple.
    """

    name: str
    vector_bytes: int
    registers: int
    fma: bool
    cpu: str
    features: tuple[str, ...]
    triple: str

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Register tiles, largest first: (rows, most vectors beside each other).

        Rows are powers of two, each half of the one before, down to 1. A tile's accumulators fit
        into the registers beside a vector of weights for each column and one broadcast; two
        multiply-adds a cycle at four cycles' latency want at least eight accumulators.
        """
        if self.registers >= 32:
            return ((8, 3), (4, 6), (2, 8), (1, 8))
        return ((4, 3), (2, 5), (1, 8))


_BY_NAME = {
    "avx512": (64, 32, True),
    "avx2": (32, 16, True),
    "neon": (16, 32, True),
    "plain": (16, 16, False),
}
_X86_CAPS = {
    "avx2": ("-avx512f",),
    "plain": ("-avx512f", "-avx2", "-avx", "-fma"),
}


def host_isa() -> Isa:
    """The instruction set of this machine, capped by the environment variable RNNJIT_ISA.

    Raises:
        ValueError: RNNJIT_ISA names an instruction set that is unknown, or not this machine's.
    """
    features = llvm.get_host_cpu_features()
    if platform.machine().lower() in ("aarch64", "arm64"):
        possible = ["neon", "plain"]
    else:
        possible = ["plain"]
        if features.get("avx2") and features.get("fma"):
            possible.insert(0, "avx2")
        if features.get("avx512f"):
            possible.insert(0, "avx512")
    name = os.environ.get(ISA_VARIABLE) or possible[0]
    if name not in possible:
        raise ValueError(f"{ISA_VARIABLE} must be one of {possible} on this machine, got {name!r}")
    flat = tuple(each for each in features.flatten().split(",") if each)
    return isa_named(
        name,
        llvm.get_host_cpu_name(),
        (*flat, *_X86_CAPS.get(name, ())),
        llvm.get_process_triple(),
    )


def isa_named(name: str, cpu: str, features: tuple[str, ...], triple: str) -> Isa:
    """An instruction set for a processor that need not be this machine's."""
    return Isa(name, *_BY_NAME[name], cpu, features, triple)
