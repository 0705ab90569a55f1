"""Describes this host: the processor and the package versions that kernel speed depends on."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("rnnjit", "torch", "numpy", "numba", "llvmlite", "apache-tvm")
"""The distributions whose versions affect kernels."""

FEATURES = (
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
    "amx_bf16",
    "asimd",
    "asimdhp",
    "sve",
    "sve2",
)


@cache
def host() -> str:
    """Identify the host for timings: processor, its features and count, and package versions."""
    name, flags = processor()
    features = " ".join(feature for feature in FEATURES if feature in flags)
    versions = " ".join(f"{package} {version_of(package)}" for package in PACKAGES)
    return f"{name}, {platform.machine()}, {features}, {usable_cpus()} processors, {versions}"


def version_of(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    if package == "torch":
        # The version of the distribution lacks the build, such as +cpu.
        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def system() -> str:
    """Operating system and machine type."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def usable_cpus() -> int:
    """The number of logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
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
