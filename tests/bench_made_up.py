"""Reports of benchmarks that never ran."""

from rnnjit.bench.records import Case, Contender, Machine, Measurement, Report

CASE = Case(T=5, B=2, I=3, H=4)
OTHER = Case(T=6, B=2, I=3, H=4)
KINDS = {"eager": "baseline", "fast": "backend", "second": "backend", "peer": "peer"}


def report(times, absent=()):
    """One with times by contestant and case; in the place of a time there may be a verdict."""
    found = []
    for name, by_case in times.items():
        for case, time in by_case.items():
            if isinstance(time, str):
                found.append(
                    Measurement(contestant=name, case=case, verdict=time, reason=f"{time} here")
                )
            else:
                found.append(
                    Measurement(contestant=name, case=case, p20=time, p50=time, p80=time, samples=1)
                )
    contenders = tuple(
        Contender(name=n, kind=kind, title=n, absent="not here" if n in absent else "")
        for n, kind in KINDS.items()
    )
    machine = Machine(cpu="a cpu", system="a system", cpus=2, isa="an isa")
    return Report(
        preset="quick",
        created="2025-01-01T00:00:00+00:00",
        commit="c0ffee",
        versions={},
        machine=machine,
        contenders=contenders,
        measurements=tuple(found),
    )
