"""A machine whose peaks and bandwidths are round numbers."""

from rnnjit.bench.records import Bandwidth, Machine, Peak

GIGA = 1e9
MACHINE = Machine(
    cpu="made up",
    system="none",
    cpus=2,
    isa="avx2",
    peaks=tuple(Peak(dtype="float32", threads=n, flops=100 * GIGA * n) for n in (1, 2)),
    bandwidths=tuple(
        Bandwidth(level=level, threads=n, capacity=capacity, rate=n * rate * GIGA)
        for n in (1, 2)
        for level, capacity, rate in (
            ("L1", 32 << 10, 200),
            ("L2", 1 << 20, 100),
            ("L3", 16 << 20, 50),
            ("memory", 0, 10),
        )
    ),
)
