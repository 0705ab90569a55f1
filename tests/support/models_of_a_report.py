"""A report of whole models that no machine made: its ratios are known."""

from rnnjit.bench.models.records import About, ModelReport, ModelRow, Quantiles
from rnnjit.bench.records import Machine


def quantiles(seconds):
    return Quantiles(p20=seconds, p50=seconds, p80=seconds, samples=9, calls=1)


def row(model, what, ratio=None, share=None, **rest):
    about = About(model=model, name=model.upper(), recurrent="GRU(4, 5)", call="B=1", source="made")
    times = {} if ratio is None else {"eager": quantiles(ratio), "compiled": quantiles(1.0)}
    return ModelRow(about=about, what=what, share=share, **times, **rest)


REPORT = ModelReport(
    machine=Machine(cpu="a cpu", system="a system", cpus=2, isa=""),
    threads=2,
    rows=(
        row("a", "inference", 2.0, 0.9, versions={"torch": "2.9.0"}),
        row("a", "training", 4.0, 0.8, versions={"torch": "2.13.0"}),
        row("b", "inference", 8.0, 0.6),
        row("b", "training", verdict="wrong", reason="the loss is off"),
        row("c", "inference", 0.5, 0.5),
        row("d", None, verdict="failed", reason="it crashed"),
    ),
)
