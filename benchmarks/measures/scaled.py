"""Machines with more cores than this one, each core of them like this one's."""

from __future__ import annotations

from rnnjit.bench.records import Bandwidth, Machine, Peak

#: Bytes a second from memory, by cores: two channels of DDR5-5200, eight and twelve of DDR5-4800,
#: at 75% of what they could do.
MEMORY = {8: 62e9, 32: 230e9, 96: 345e9}
#: Cores that share a last cache.
_GROUP = 8
_LAST = 32 << 20


def scaled(machine: Machine, cores: int) -> Machine:
    """A machine of `cores` cores like those of a measured one.

    Each core multiplies and reads its own caches as fast as here. Eight cores share a last cache of
    32 MiB, and all share the memory.
    """
    one = {level.level: level for level in machine.bandwidths if level.threads == 1}
    (peak,) = (p.flops for p in machine.peaks if (p.dtype, p.threads) == ("float32", 1))
    peaks, levels = [], []
    for threads in range(1, cores + 1):
        peaks.append(Peak(dtype="float32", threads=threads, flops=peak * threads))
        shared = min(threads, _GROUP)
        for name, level in one.items():
            capacity, rate = level.capacity, level.rate * threads
            if name == "L3":
                capacity = _LAST // shared
            if name == "memory":
                rate = min(rate, MEMORY[cores])
            levels.append(Bandwidth(level=name, threads=threads, capacity=capacity, rate=rate))
    return Machine(
        cpu=f"{cores} cores like those of {machine.cpu}",
        system=machine.system,
        cpus=cores,
        isa=machine.isa,
        peaks=tuple(peaks),
        bandwidths=tuple(levels),
    )
