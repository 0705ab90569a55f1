"""The correctness gate of int8 layers, whose results depend on how numbers are quantized.

Contestants quantize in different ways: a matrix by one scale or one for each row, x and the states
by one for a call, a step or a row, to 7 or 8 bits. None of them is wrong, so their results are not
held against those of one of them, but against the layer that was quantized, in float64: they may
differ from it by a few times what the rounding to int8 changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from rnnjit.bench import records
from rnnjit.bench.arrays import Array, Arrays
from rnnjit.bench.contestants.torch_modules import tensor_of
from rnnjit.bench.correctness_gate import Judgement, call_of, eagerly
from rnnjit.testing.calls import Call, Values

#: The steps of a range of numbers, of the coarsest scheme: torch rounds x and h to 7 bits.
STEPS = 127
#: How many times the error of rounding is allowed.
FACTOR = 2.0
#: How often the error of rounding is drawn; the largest counts.
_DRAWS = 4


class QuantizedGate:
    """Checks the results of one case of int8.

    The error of rounding is measured, not estimated: each number of the matrices, x and the initial
    states is moved by a random part of half a step, a step being 1/127 of the range of its tensor,
    and torch's own layer is run on them in float64. What that changes in a row, the outputs of one
    sequence at one step, is taken as the root of its mean square, and the largest of all rows
    counts. A contestant may differ from the layer by `FACTOR` times as much in each row.

    Attributes:
        eager_error: None: eager has no error of its own in int8.
    """

    eager_error: float | None = None

    def __init__(self, case: records.Case, arrays: Arrays) -> None:
        exact = structs.replace(case, dtype="float64")
        call = call_of(exact, _widened(arrays))
        self._truth = _values(call)
        self._allowed = dict.fromkeys(self._truth, 0.0)
        generator = torch.Generator("cpu").manual_seed(0)
        for _ in range(_DRAWS):
            for name, value in _values(_moved(call, generator)).items():
                changed = FACTOR * _largest_row(value - self._truth[name])
                self._allowed[name] = max(self._allowed[name], changed)

    def judge(self, results: Mapping[str, Array]) -> Judgement:
        """Compare the results of a contestant with the layer; `results` as in `Ready.results`."""
        wrong, error = "", 0.0
        for name, truth in self._truth.items():
            if name not in results:
                return Judgement(f"it gives no {name}", None)
            got = tensor_of(results[name])
            if got.shape != truth.shape or got.dtype != torch.float32:
                form = f"{got.dtype} {list(got.shape)}, expected float32 {list(truth.shape)}"
                return Judgement(f"{name} is {form}", None)
            if not got.isfinite().all():
                return Judgement(f"{name} has values that are not finite", None)
            errors = got.double() - truth
            error = max(error, float(errors.abs().max()))
            if not wrong:
                wrong = self._wrong(name, errors)
        return Judgement(wrong, error)

    def _wrong(self, name: str, errors: Tensor) -> str:
        found, allowed = _largest_row(errors), self._allowed[name]
        if found <= allowed:
            return ""
        at = _rows(errors).flatten().argmax()
        place = [int(i) for i in torch.unravel_index(at, errors.shape[:-1])]
        return (
            f"{name} is off by {found:.3g}, the root mean square of row {place}: rounding to int8 "
            f"changes up to {allowed / FACTOR:.3g}, and {allowed:.3g} is allowed"
        )


def _values(call: Call) -> dict[str, Tensor]:
    found: Values = eagerly(call.module, call)
    return {name: value for name, value in found.items() if value is not None}


def _rows(errors: Tensor) -> Tensor:
    """The root of the mean square of each row `[..., features]`."""
    return errors.square().mean(-1).sqrt()


def _largest_row(errors: Tensor) -> float:
    return float(_rows(errors).max())


def _moved(call: Call, generator: torch.Generator) -> Call:
    """The call with all numbers that are quantized moved by up to half a step."""

    def moved(values: Tensor) -> Tensor:
        step = (values.max().clamp(min=0) - values.min().clamp(max=0)) / STEPS
        part = torch.rand(values.shape, generator=generator, dtype=values.dtype, device="cpu")
        return values + (part - 0.5) * step

    found = call.to(torch.float64)
    with torch.no_grad():
        for name, weight in found.module.named_parameters():
            if name.startswith("weight"):
                weight.copy_(moved(weight))
    return replace(found, x=moved(found.x), hx=tuple(map(moved, found.hx or ())))


def _widened(arrays: Arrays) -> Arrays:
    """The same numbers in float64; lengths as they are."""

    def wide(found: Any) -> Any:
        if isinstance(found, dict):
            return {name: wide(each) for name, each in found.items()}
        return found.astype("float64") if getattr(found, "dtype", None) == "float32" else found

    return Arrays(*map(wide, arrays))
