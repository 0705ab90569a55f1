"""What this machine is and has: versions, processor, threads, backends."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rnnjit.registry import backends, lacking
from rnnjit.team import no_team

PACKAGES = ("rnnjit", "torch", "numpy", "numba", "llvmlite", "apache-tvm")
"""The distributions whose versions decide what a kernel does."""

_FEATURES = (
    "sse4_2",
    "avx",
    "fma",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "asimd",
    "asimdhp",
    "sve",
    "sve2",
)


@dataclass(frozen=True)
class BackendStatus:
    """An installed backend.

    Attributes:
        name: how users ask for it.
        priority: `auto` tries backends from the highest to the lowest.
        missing: why it cannot run here, with what to install; empty if it can.
    """

    name: str
    priority: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """What measurements on this machine depend on.

    Attributes:
        versions: of Python and `PACKAGES`; None for a package that is not installed.
        system: operating system and machine type.
        cpu: the processor's name as it gives it, "" if the system does not say.
        capability: the vector instructions that PyTorch's kernels use, such as "AVX512".
        features: those among the processor's features that matter here; empty if not known.
        cpus: logical processors that this process may run on.
        threads: `torch.get_num_threads()`, which backends follow.
        teams: "" if compiled kernels can share a call between threads, else why they cannot.
        backends: every installed backend, in the order of `auto`.
    """

    versions: dict[str, str | None]
    system: str
    cpu: str
    capability: str
    features: tuple[str, ...]
    cpus: int
    threads: int
    teams: str
    backends: tuple[BackendStatus, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return asdict(self)


def environment() -> Environment:
    """Look at the machine, as it is now.

    Example:
        >>> environment().versions["torch"] == torch.__version__
        True
    """
    name, flags = _processor()
    return Environment(
        versions={"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=name,
        capability=torch.backends.cpu.get_cpu_capability(),
        features=tuple(feature for feature in _FEATURES if feature in flags),
        cpus=_usable_cpus(),
        threads=torch.get_num_threads(),
        teams=no_team(),
        backends=tuple(
            BackendStatus(backend.name, backend.priority, lacking(backend))
            for backend in backends().values()
        ),
    )


@cache
def host() -> str:
    """What decides how fast kernels are here: processor, processors, and the versions at work."""
    name, flags = _processor()
    features = " ".join(feature for feature in _FEATURES if feature in flags)
    versions = " ".join(f"{package} {_version(package)}" for package in PACKAGES)
    return f"{name}, {platform.machine()}, {features}, {_usable_cpus()} processors, {versions}"


def _version(package: str) -> str | None:
    if package == "torch":
        # Its distribution leaves out the build, such as +cpu.
        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """The name and the feature flags of the first processor that the system lists."""
    fields: dict[str, str] = {}
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags", fields.get("features", ""))
    return fields.get("model name", platform.processor()), frozenset(flags.split())
