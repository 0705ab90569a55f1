"""Reports that no machine made: their ratios to eager are known."""

from functools import cache
from itertools import product

from rnnjit.bench.records import (
    Bandwidth,
    Case,
    ContestantInfo,
    Machine,
    Measurement,
    Peak,
    Report,
)
from rnnjit.bench.report.html import page

HOSTILE = "<script>alert('x')</script> & \"quoted\", = 1"

CONTESTANTS = tuple(
    ContestantInfo(name=name, kind=kind, title=title, versions=versions, absent=absent)
    for name, kind, title, versions, absent in (
        ("eager", "baseline", "eager PyTorch", {"torch": "2.13.0"}, ""),
        ("numba", "backend", "numba", {"numba": "0.68.1"}, ""),
        ("tvm", "backend", "tvm", {"apache-tvm": "0.27.0"}, ""),
        ("inductor", "backend", "inductor", {}, ""),
        ("cuda", "backend", "cuda", {}, "no NVIDIA GPU: " + HOSTILE),
        ("onnx", "peer", "onnxruntime", {"onnxruntime": "1.22.0"}, ""),
        ("openvino", "peer", "OpenVINO", {"openvino": "2026.1"}, ""),
        ("compile", "peer", "torch.compile", {}, ""),
        ("jax", "peer", "JAX", {}, ""),
        ("flax", "peer", "flax", {}, "pip install flax"),
    )
)
# Times as fast as eager, in every case but where `FASTER` or `measurement` says otherwise.
RATIOS = {"eager": 1, "numba": 4, "tvm": 3, "inductor": 1.25, "onnx": 2, "openvino": 2.5}
RATIOS |= {"compile": 0.8, "jax": 0.5}

SHAPES = (
    (1, 1, 32, 64),
    (5, 32, 10, 20),
    (100, 1, 64, 64),
    (100, 1, 512, 512),
    (100, 32, 128, 256),
    (20, 128, 1024, 1024),
    (1000, 16, 64, 128),
)
MACHINE = Machine(
    cpu="Imaginary 9000 " + HOSTILE,
    system="Linux x86_64",
    cpus=4,
    isa="avx512",
    peaks=tuple(
        Peak(dtype=d, threads=t, flops=f * t)
        for d, f in [("float32", 1e11), ("float64", 5e10)]
        for t in (1, 2, 4)
    ),
    bandwidths=tuple(
        Bandwidth(level=level, threads=t, capacity=capacity, rate=rate * t)
        for level, capacity, rate in [
            ("L1", 32 << 10, 2e11),
            ("L2", 1 << 20, 1e11),
            ("L3", 16 << 20, 4e10),
            ("memory", 0, 1e10),
        ]
        for t in (1, 2, 4)
    ),
)


def cases(full=True):
    modes = ("forward", "training")
    for mode, shape in product(modes, SHAPES):
        yield case(shape, mode=mode, threads=2)
    if not full:
        return
    yield case(
        (100, 16, 64, 128), layers=2, bidirectional=True, mode="training", threads=2, group="deep"
    )
    yield case(
        (100, 16, 64, 128),
        packed=True,
        nonlinearity="relu",
        mode="training",
        threads=2,
        group="packed",
    )
    for H in (64, 256):
        yield case((1, 1, 32, H), mode="streaming")
    for mode, (field, values) in product(modes, SWEEPS.items()):
        for value in values:
            yield case((100, 16, 64, 128), mode=mode, group=field, **{field: value})
    yield case((100, 16, 64, 128), mode="cold start", group="cold start, empty cache")
    yield case((100, 16, 64, 128), mode="cold start", group="cold start, filled cache")


SWEEPS = {
    "T": (1, 10, 100, 1000),
    "B": (1, 4, 16, 64),
    "H": (32, 64, 128, 256, 512),
    "threads": (1, 2, 4),
}


def case(shape, **fields):
    sizes = dict(zip("TBIH", shape, strict=True))
    return Case(**sizes | fields)


def eager_seconds(case):
    if case.mode == "cold start":
        return 0.02
    flops = 2 * case.T * case.B * (case.I + case.H) * case.H * case.layers
    seconds = case.T * case.layers * 1e-5 + flops / (5e10 * case.threads**0.5)
    return seconds * (3 if case.mode == "training" else 1) + 2e-5


def ratio(name, case):
    """Times as fast as eager that `measurement` gives a contestant which is right."""
    if case.mode == "cold start":
        return RATIOS[name] / (200 if name != "eager" else 1)
    if name == "onnx" and (case.T, case.B) == (20, 128):
        return 5.0  # a peer that is faster than every backend
    if name in ("numba", "tvm") and case.T * case.B == 1 and case.group == "grid":
        return 0.9 if name == "numba" else 0.8  # eager is faster than both
    return RATIOS[name] / (1 + case.B / 100)


def measurement(name, case):
    if name in ("onnx", "openvino") and case.mode == "training":
        return untimed(name, case, "declined", "it does not train")
    if name == "jax" and case.packed:
        return untimed(name, case, "declined", "no packed batches: " + HOSTILE)
    if name == "compile" and case.H == 1024:
        return untimed(name, case, "failed", "ran longer than 60 s")
    if name == "jax" and case.T == 1000:
        return untimed(name, case, "wrong", "y differs by 0.3 at [999, 0, 5]", error=0.3)
    if name == "inductor" and case.T == 5:
        return untimed(name, case, "absent", "no C++ compiler: install g++")
    r = ratio(name, case)
    p50 = eager_seconds(case) / r if name != "eager" else eager_seconds(case)
    return Measurement(
        contestant=name,
        case=case,
        p20=p50 * 0.95,
        p50=p50,
        p80=p50 * 1.1,
        samples=15,
        calls=10,
        error=2e-7,
        eager_error=3e-7,
        first_call=0.5,
        memory=memory(name, case),
    )


def memory(name, case):
    """Bytes, of which everyone takes 0.7 of what the one before takes, but not less than a page."""
    return int(16 * case.T * case.B * case.H * 0.7 ** list(RATIOS).index(name)) * 100


@cache
def full_page():
    """The page of `report()`, which takes seconds to draw."""
    return page(report())


CASE, OTHER = case((5, 2, 3, 4)), case((6, 2, 3, 4))


def report_of(times, absent=()):
    """A report with times by contestant and case; in the place of a time may be a verdict."""
    kinds = {"eager": "baseline", "fast": "backend", "second": "backend", "peer": "peer"}
    return report(
        full=False,
        contestants=tuple(
            ContestantInfo(name=n, kind=kind, title=n, absent="not here" if n in absent else "")
            for n, kind in kinds.items()
        ),
        measurements=tuple(
            untimed(name, case, time, f"{time} here")
            if isinstance(time, str)
            else Measurement(contestant=name, case=case, p20=time, p50=time, p80=time, samples=1)
            for name, by_case in times.items()
            for case, time in by_case.items()
        ),
    )


def untimed(name, case, verdict, reason, **fields):
    return Measurement(contestant=name, case=case, verdict=verdict, reason=reason, **fields)


def report(full=True, **fields):
    present = [c.name for c in CONTESTANTS if not c.absent]
    given = {
        "preset": "full" if full else "quick",
        "created": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"rnnjit": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
        "machine": MACHINE if full else Machine(cpu="Plain", system="Linux", cpus=1, isa="avx2"),
        "contestants": CONTESTANTS,
        "command": "rnnjit bench --preset full --rounds 9",
        "measurements": tuple(measurement(n, c) for c in cases(full) for n in present),
    }
    return Report(**given | fields)
