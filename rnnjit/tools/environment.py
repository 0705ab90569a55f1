"""Describes this machine: versions, processor, threads, backends."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rnnjit.backend import Backend
from rnnjit.dispatch.registry import backends, lacking
from rnnjit.runtime.host import FEATURES, PACKAGES, processor, system, usable_cpus, version_of
from rnnjit.runtime.openmp import no_team


@dataclass(frozen=True)
class BackendStatus:
    """An installed backend.

    Attributes:
        name: the name that users pass as `backend`.
        priority: `auto` tries backends from the highest to the lowest.
        missing: why it cannot run here, with what to install; empty if it can.
        choices: what it has measured here and chosen by it, see `rnnjit.Backend.choices`.
    """

    name: str
    priority: int
    missing: tuple[str, ...]
    choices: dict[str, str]

    @classmethod
    def of(cls, backend: Backend) -> BackendStatus:
        """The status of a backend on this machine."""
        missing = lacking(backend)
        choices = {} if missing else backend.choices()
        return cls(backend.name, backend.priority, missing, choices)


@dataclass(frozen=True)
class Environment:
    """The properties of this machine that measurements depend on.

    Attributes:
        versions: of Python and `PACKAGES`; None for a package that is not installed.
        system: operating system and machine type.
        cpu: name of the processor, "" if the system does not tell it.
        capability: the vector instructions that PyTorch's kernels use, such as "AVX512".
        features: the processor's vector features; empty if unknown.
        cpus: logical processors that this process may run on.
        threads: `torch.get_num_threads()`, which backends follow.
        teams: "" if compiled kernels can use several threads, else why they cannot.
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
    """Describe the machine in its current state.

    Example:
        >>> environment().versions["torch"] == torch.__version__
        True
    """
    name, flags = processor()
    return Environment(
        versions={"python": platform.python_version(), **{p: version_of(p) for p in PACKAGES}},
        system=system(),
        cpu=name,
        capability=torch.backends.cpu.get_cpu_capability(),
        features=tuple(feature for feature in FEATURES if feature in flags),
        cpus=usable_cpus(),
        threads=torch.get_num_threads(),
        teams=no_team(),
        backends=tuple(BackendStatus.of(backend) for backend in backends().values()),
    )
