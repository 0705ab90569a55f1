"""Instruction sets: the properties of a vector unit that code generation depends on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace

ISA_VARIABLE = "RNNJIT_ISA"


@dataclass(frozen=True)
class Isa:
    """The instruction set that kernels are generated for.

    Attributes:
        name: "avx512", "avx2", "neon", "plain", or a name that a backend defines.
        vector_bytes: width of a vector register.
        registers: how many vector registers there are.
        fma: whether a fused multiply-add is one instruction.
        cpu: LLVM's name of the processor.
        features: LLVM's names of its features, each with + (present) or - (absent) in front.
        triple: LLVM's target triple.
        abi: LLVM's name of the calling convention, if the triple has several.
        amx: whether products of bfloat16 use tile registers (Intel's AMX): "tiles", "emulated" (the
            same numbers without such registers, slowly) or "", not at all.
    """

    name: str
    vector_bytes: int
    registers: int
    fma: bool
    cpu: str
    features: tuple[str, ...]
    triple: str
    abi: str = ""
    amx: str = ""

    def lanes(self, itemsize: int) -> int:
        """Elements of `itemsize` bytes in a vector register."""
        return self.vector_bytes // itemsize


_BY_NAME = {
    "avx512": (64, 32, True),
    "avx2": (32, 16, True),
    "neon": (16, 32, True),
    "plain": (16, 16, False),
}
_AMX = {"amx": "tiles", "amx-emulated": "emulated"}
_X86_CAPS = {
    "avx2": ("-avx512f",),
    "plain": ("-avx512f", "-avx2", "-avx", "-fma"),
}


def isa_of(cpu: str, features: Mapping[str, bool], triple: str, *, amx: bool = False) -> Isa:
    """The instruction set of this machine, capped by the environment variable RNNJIT_ISA.

    "amx" and "amx-emulated" are "avx512" with `Isa.amx`.

    Args:
        cpu: LLVM's name of the processor.
        features: for each feature, by LLVM's name, whether the processor has it.
        triple: LLVM's target triple.
        amx: whether this process may use the tile registers that the features name.

    Raises:
        ValueError: RNNJIT_ISA names an instruction set that is unknown or that this machine lacks.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        possible = ["neon", "plain"]
    else:
        possible = ["plain"]
        if features.get("avx2") and features.get("fma"):
            possible.insert(0, "avx2")
        if features.get("avx512f"):
            possible.insert(0, "avx512")
        if features.get("avx512bw") and "avx512" in possible:
            possible.append("amx-emulated")
            if amx and has_amx(features):
                possible.insert(0, "amx")
    name = os.environ.get(ISA_VARIABLE) or possible[0]
    if name not in possible:
        raise ValueError(f"{ISA_VARIABLE} must be one of {possible} on this machine, got {name!r}")
    amx_of = _AMX.get(name, "")
    name = "avx512" if amx_of else name
    flat = tuple(("+" if has else "-") + feature for feature, has in sorted(features.items()))
    return replace(isa_named(name, cpu, (*flat, *_X86_CAPS.get(name, ())), triple), amx=amx_of)


def has_amx(features: Mapping[str, bool]) -> bool:
    """Whether a processor with such features multiplies bfloat16 by tile registers."""
    return all(features.get(name) for name in ("amx-tile", "amx-bf16", "avx512f", "avx512bw"))


def isa_named(name: str, cpu: str, features: tuple[str, ...], triple: str) -> Isa:
    """An instruction set by name, for a processor that may be another one than this machine's.

    Raises:
        KeyError: `name` is not one of "avx512", "avx2", "neon" and "plain".
    """
    return Isa(name, *_BY_NAME[name], cpu, features, triple)
