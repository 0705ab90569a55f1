"""Describes and measures the machine of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from rnnjit.bench.records import Bandwidth, Machine, Peak
from rnnjit.tools.environment import environment

#: Bytes of each cache level, if the system does not tell them.
_CACHES = {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}
_BITS = {"float32": 32, "float64": 64}
_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


def measure_machine(threads: Iterable[int], *, quick: bool = False) -> Machine:
    """Describe this machine and measure its peaks, which takes about 10 s, or 1 to 2 s if `quick`.

    Without llvmlite, which compiles the measuring loops, there are no peaks.

    Args:
        threads: the numbers of threads for which to measure peaks.
        quick: whether to take fewer and shorter samples.
    """
    here = environment()
    isa = ""
    peaks: tuple[Peak, ...] = ()
    bandwidths: tuple[Bandwidth, ...] = ()
    if find_spec("llvmlite") is not None:
        from rnnjit.bench.peaks import bandwidth, fma_peak
        from rnnjit.codegen.host import host_isa

        isa, teams = host_isa().name, sorted(set(threads))
        peaks = tuple(
            Peak(dtype=dtype, threads=team, flops=fma_peak(bits, team, quick=quick))
            for dtype, bits in _BITS.items()
            for team in teams
        )
        bandwidths = tuple(
            Bandwidth(
                level=level,
                threads=team,
                capacity=capacity(level, team),
                rate=bandwidth(size, team, quick=quick),
            )
            for team in teams
            for level, size in buffers(team).items()
        )
    return Machine(
        cpu=here.cpu,
        system=here.system,
        cpus=here.cpus,
        isa=isa,
        peaks=peaks,
        bandwidths=bandwidths,
    )


def buffers(threads: int) -> dict[str, int]:
    """Buffer bytes per thread for each level: half of a cache; for memory, four times the L3."""
    sizes = {**_CACHES, **cache_sizes()}
    wanted = {
        "L1": sizes[1] // 2,
        "L2": sizes[2] // 2,
        "L3": max(sizes[3] // 2 // threads, 2 * sizes[2]),
        "memory": 4 * sizes[3] // threads,
    }
    return {level: 1 << size.bit_length() - 1 for level, size in wanted.items()}


def capacity(level: str, threads: int) -> int:
    """Bytes of a level per thread; 0 for memory, which is taken as unlimited."""
    sizes = {**_CACHES, **cache_sizes()}
    return {"L1": sizes[1], "L2": sizes[2], "L3": sizes[3] // threads}.get(level, 0)


def cache_sizes(folder: Path = _FOLDER) -> dict[int, int]:
    """Bytes of the data caches by level, as far as the system tells them."""
    found = {}
    for index in folder.glob("index*"):
        kind, level, size = (
            (index / name).read_text().strip() for name in ("type", "level", "size")
        )
        if kind != "Instruction" and size.endswith("K"):
            found[int(level)] = int(size[:-1]) << 10
    return found
