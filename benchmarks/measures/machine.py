"""The section of the machine: its peaks, and what it reads from each level of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnjit.bench.machine import buffers
from rnnjit.bench.peaks import bandwidth, host_isa

if TYPE_CHECKING:
    from measures.pairs import Bench
    from measures.report import Section


def fill(bench: Bench, section: Section) -> None:
    """The section of the machine: peaks and bandwidths by thread count."""
    teams = sorted({1, bench.threads})
    for bits in (32, 64):
        for threads in teams:
            peak = bench.peak(bits, threads)
            what = f"multiply-adds, float{bits}"
            section.record(what=what, threads=threads, measured=peak, unit="GFLOP/s")
    for level, size in buffers(bench.threads).items():
        for threads in teams:
            speed = bandwidth(size, threads, quick=bench.quick) * 1e-9
            what = f"reading {level}, {_bytes(size)} a thread"
            section.record(what=what, threads=threads, measured=speed, unit="GB/s")
    section.data["isa"] = host_isa().name


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
