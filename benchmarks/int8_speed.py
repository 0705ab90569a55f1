"""Measures the time of layers of int8 matrices against float32 and PyTorch's own int8 layers.

    python benchmarks/int8_speed.py [--seconds S] [-o FILE.json]

The contestants take turns in one process, on all threads. `--seconds` is the time for each layer
and call; a row holds the median time of each contestant.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import msgspec
import torch
from torch import Tensor, nn

import rnnjit
from rnnjit.runtime.host import processor

LAYERS = {"nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU}


class Row(msgspec.Struct):
    """One layer and call: the median microseconds of each contestant."""

    layer: str
    H: int
    B: int
    T: int
    microseconds: dict[str, float]


def contestants(name: str, H: int) -> dict[str, nn.Module]:
    """The same layer, with I = H, as each contestant runs it."""
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[name](H, H)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor
        quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
        theirs = quantize(model, {LAYERS[name]}, torch.qint8)
    ours = rnnjit.quantize(model)
    return {"int8": ours, "float32": rnnjit.compile(model), "torch int8": theirs}


def measured(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median microseconds of each call, by turns; each is called twice before."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in (*calls.values(), *calls.values()):
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(found.values()):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(1e6 * (time.perf_counter() - start))
    return {name: median(times) for name, times in found.items()}


def call_of(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call of a model on x."""
    return lambda: model(x)


def main() -> int:
    """Measure, print a table, and write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("| layer | I = H | B | T | int8, us | float32 / int8 | torch int8 / int8 |")
    print("|---|---|---|---|---|---|---|")
    for name, H in product(LAYERS, (128, 256, 512, 1024)):
        models = contestants(name, H)
        for B, T in product((1, 16), (1, 20)):
            x = torch.randn(T, B, H)
            with torch.no_grad():
                calls = {each: call_of(model, x) for each, model in models.items()}
                times = measured(calls, arguments.seconds)
            rows.append(Row(name, H, B, T, times))
            ours = times["int8"]
            ratios = " | ".join(f"{times[k] / ours:.2f}" for k in ("float32", "torch int8"))
            print(f"| {name} | {H} | {B} | {T} | {ours:.1f} | {ratios} |", flush=True)
    if arguments.output:
        found = {"machine": processor()[0], "threads": torch.get_num_threads(), "rows": rows}
        arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
