"""The targets that programs are compiled for ahead of time, and which of them run here."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import llvmlite.binding as llvm

from rnnjit.codegen import Isa, isa_named
from rnnjit.codegen.host import host_isa

_LINUX = "unknown-linux-gnu"
# The levels of the x86-64 psABI, in LLVM's feature names.
_V3 = (
    *("avx", "avx2", "bmi", "bmi2", "cx16", "f16c", "fma", "lzcnt", "movbe", "popcnt"),
    *("sse3", "sse4.1", "sse4.2", "ssse3"),
)
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


class Target(NamedTuple):
    """A kind of processor.

    Attributes:
        isa: what code is generated for.
        requires: LLVM's names of the features that a processor must have.
    """

    isa: Isa
    requires: tuple[str, ...]


def _riscv64() -> Isa:
    # Without the vector extension, which few boards have: a vector is as wide as one float64, and
    # a tile may use 16 of the 32 registers.
    return Isa(
        "scalar",
        vector_bytes=8,
        registers=16,
        fma=True,
        cpu="generic-rv64",
        features=("+m", "+a", "+f", "+d", "+c"),
        triple=f"riscv64-{_LINUX}",
        abi="lp64d",
    )


_OTHERS = {
    "x86-64-v3": Target(isa_named("avx2", "x86-64-v3", (), f"x86_64-{_LINUX}"), _V3),
    "x86-64-v4": Target(isa_named("avx512", "x86-64-v4", (), f"x86_64-{_LINUX}"), _V4),
    "aarch64": Target(isa_named("neon", "generic", ("+neon",), f"aarch64-{_LINUX}"), ("neon",)),
    "apple-m1": Target(isa_named("neon", "apple-m1", (), "arm64-apple-macosx11.0.0"), ("neon",)),
    "riscv64": Target(_riscv64(), ()),
    "wasm32": Target(
        isa_named("plain", "generic", ("+simd128",), "wasm32-unknown-unknown"), ("simd128",)
    ),
}
NAMES = ("native", *_OTHERS)


def target(name: str) -> Target:
    """The target of a name in `NAMES`."""
    if name != "native":
        return _OTHERS[name]
    # A program asks the system for no tile registers.
    isa = replace(host_isa(), amx="")
    enabled = {part[1:] for part in isa.features if part.startswith("+")}
    disabled = {part[1:] for part in isa.features if part.startswith("-")}
    return Target(isa, tuple(sorted(enabled - disabled)))


def why_not_here(triple: str, requires: tuple[str, ...]) -> str:
    """Why this machine cannot run code for a triple that requires features, or "" if it can."""
    here = llvm.get_process_triple()
    for part, wanted, found in zip(
        ("processor", "system"), _kind(triple), _kind(here), strict=True
    ):
        if wanted != found:
            return f"it is for the {part} {wanted}, and this machine's is {found}"
    features = llvm.get_host_cpu_features()
    lacking = [name for name in requires if not features.get(name)]
    if lacking:
        return f"it needs {', '.join(lacking)}, which this machine's processor does not have"
    return ""


def _kind(triple: str) -> tuple[str, str]:
    """Processor and system of a triple, in one spelling."""
    processor, _, system = triple.partition("-")
    processor = {"arm64": "aarch64", "amd64": "x86_64"}.get(processor, processor)
    for name in ("linux", "macos", "darwin", "windows"):
        if name in system:
            return processor, "macos" if name == "darwin" else name
    return processor, "none"
