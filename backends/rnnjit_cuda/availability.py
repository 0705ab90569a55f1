"""Whether the backend can run: what is missing from this machine, and which devices are too old."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from rnnjit.runtime.packages import install, lacking

#: The releases of numba-cuda that the kernels are written for.
RELEASES = ">=0.30,<0.31"
#: NVIDIA's two compilers and linker, which turn a kernel into machine code.
LIBRARIES = ("nvvm", "nvrtc", "nvJitLink")
LEAST_CAPABILITY = (8, 0)


def missing() -> list[str]:
    """The packages, GPU and libraries that this machine lacks, and what to do about each."""
    return [*_without_packages(), *_without_device()] or list(without_libraries(LIBRARIES))


@cache
def without_libraries(names: tuple[str, ...]) -> tuple[str, ...]:
    """A reason for each library of the CUDA toolkit that cannot be loaded.

    Args:
        names: as `cuda.pathfinder` knows them.
    """
    from cuda.pathfinder import load_nvidia_dynamic_lib

    reasons = []
    for name in names:
        try:
            load_nvidia_dynamic_lib(name)
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0]
            reasons.append(f"the CUDA library {name} cannot be loaded ({first}): {install('cuda')}")
    return tuple(reasons)


def too_old(name: str, capability: tuple[int, int]) -> list[str]:
    """Why a device cannot run the kernels, or nothing if it can.

    Args:
        name: of the device, for the message.
        capability: its compute capability.
    """
    if capability >= LEAST_CAPABILITY:
        return []
    found, least = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
    return [f"{name} has compute capability {found}: kernels need {least} (Ampere) or later"]


def _without_packages() -> list[str]:
    reasons = lacking("numba-cuda", "numba_cuda", RELEASES, install("cuda"))
    if not (find_spec("cuda") and find_spec("cuda.pathfinder")):
        reasons.append(f"cuda-pathfinder cannot be imported: {install('cuda')}")
    return reasons


def _without_device() -> list[str]:
    if torch.version.cuda is None:
        return ["this PyTorch is built without CUDA: install a CUDA build, see pytorch.org"]
    if not torch.cuda.is_available():
        return [
            "PyTorch sees no CUDA device: look at nvidia-smi (driver, GPU) and at the environment "
            "variable CUDA_VISIBLE_DEVICES"
        ]
    return []
