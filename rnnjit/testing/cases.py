"""The cases of the kit: a quick subset, a covering array, and a product of a layer's options.

Each axis of `AXES` is one option, such as the dtype, and has a few values. Any two values of
different axes occur together in some case of `CASES`. `product_cases` combines all values of fewer
axes, for a run that may take minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch

from rnnjit.testing.case import Case
from rnnjit.testing.covering import covering

Options = Mapping[str, Any]
_F64 = torch.float64
_UNEVEN = (3, 7, 1, 5, 7)
_SORTED = (6, 4, 4, 1)
_UNSORTED: Options = {"lengths": _UNEVEN, "enforce_sorted": False}
#: 19 sequences: more rows than a register tile in the first steps, one row in the last.
_STAIRCASE = (*(9,) * 10, 5, 5, 5, *(2,) * 5, 1)

#: What the covering array combines: for each axis its values, with the fields of `Case` that each
#: sets. Any two values go together: what one needs of another axis (an initial state, a second
#: layer), it sets itself.
AXES: dict[str, dict[str, Options]] = {
    "cell": {"tanh": {}, "relu": {"nonlinearity": "relu"}},
    "dtype": {"f32": {}, "f64": {"dtype": _F64}},
    "directions": {"forward": {}, "bidirectional": {"bidirectional": True}},
    "layers": {
        "1-layer": {},
        "2-layers": {"num_layers": 2},
        "3-layers": {"num_layers": 3},
        "dropout": {"num_layers": 2, "dropout": 0.4},
        "dropout-eval": {"num_layers": 2, "dropout": 0.5, "training": False},
    },
    "bias": {"bias": {}, "no-bias": {"bias": False}},
    "call": {
        "dense": {},
        "steps-1": {"T": 1},
        "batch-1": {"B": 1, "T": 11},
        "batch-2": {"B": 2},
        "batch-33": {"B": 33, "T": 4},
        "batch-first": {"batch_first": True, "B": 3},
        "unbatched": {"unbatched": True},
        "packed": {"lengths": _SORTED},
        "packed-unsorted": {**_UNSORTED, "batch_first": True},
        "packed-equal": {"lengths": (4, 4, 4)},
        "packed-ones": {"lengths": (1, 1, 1, 1)},
        "packed-staircase": {"lengths": _STAIRCASE},
    },
    "hidden": {f"hidden-{H}": {"hidden_size": H} for H in (20, 1, 33, 130, 257)},
    "input": {f"input-{I}": {"input_size": I} for I in (6, 1, 37, 130)},
    "states": {"no-h0": {}, "h0": {"h0": True}},
    "layout": {
        layout: {"layout": layout}
        for layout in ("contiguous", "transposed", "offset", "strided", "expanded")
    },
    "values": {
        values: {"values": values} for values in ("normal", "tiny", "saturated", "nan", "inf")
    },
    "loss": {f"through-{loss}": {"loss": loss} for loss in ("both", "y", "h_n", "sum")},
    "frozen": {
        "trained": {},
        "frozen-x": {"frozen": frozenset({"x"})},
        "frozen-weights": {"frozen": frozenset({"weights"})},
        "frozen-all-but-h0": {"frozen": frozenset({"weights", "x"}), "h0": True},
        "frozen-all-but-x": {"frozen": frozenset({"weights", "h0"})},
        "frozen-some": {"frozen": frozenset({"weight_hh_l0", "bias_ih_l0", "weight_ih_l1"})},
    },
}

_QUICK = (
    Case("tanh", quick=True, thorough=True),
    Case("relu-f64", nonlinearity="relu", dtype=_F64, h0=True, quick=True, thorough=True),
    Case(
        "packed-bidirectional-2-layers",
        hidden_size=9,
        num_layers=2,
        bidirectional=True,
        h0=True,
        quick=True,
        thorough=True,
        **_UNSORTED,
    ),
    Case("relu", nonlinearity="relu", quick=True),
    Case("batch-1", B=1, hidden_size=33, h0=True, quick=True),
    Case("bidirectional", bidirectional=True, h0=True, quick=True),
    Case("packed", lengths=_SORTED, quick=True),
    Case("nan", values="nan", quick=True),
    Case("nan-relu", values="nan", nonlinearity="relu", quick=True),
    Case("transposed", layout="transposed", h0=True, quick=True),
    Case("through-y", loss="y", h0=True, quick=True),
    Case("through-h_n", loss="h_n", h0=True, quick=True),
)

#: With those of `_QUICK` that are thorough: run with every check of `checks.CHECKS`.
_THOROUGH = (
    Case(
        "packed-bidirectional-f64",
        hidden_size=5,
        num_layers=2,
        bidirectional=True,
        h0=True,
        dtype=_F64,
        thorough=True,
        **_UNSORTED,
    ),
    Case("hidden-130", input_size=37, hidden_size=130, T=9, B=17, thorough=True),
    Case("batch-first-no-bias", batch_first=True, bias=False, h0=True, thorough=True),
    Case("single", T=1, B=1, input_size=1, hidden_size=1, h0=True, thorough=True),
)

#: Sizes and dtypes that are too slow, or too seldom accepted, to be combined with all others.
_ALONE = (
    Case("large", input_size=260, hidden_size=300, T=12, B=65, h0=True),
    Case("many-rows", input_size=3, hidden_size=9, T=64, B=40, loss="sum", h0=True),
    Case("long", T=200, B=4, hidden_size=33),
    Case("long-batch-1-bidirectional", T=220, B=1, hidden_size=24, bidirectional=True, loss="h_n"),
    Case("dropout-packed", num_layers=3, dropout=0.5, lengths=_SORTED, h0=True),
    Case("batch-0", B=0, required=False),
    Case("tanh-bf16", dtype=torch.bfloat16, h0=True, required=False),
    Case("relu-bf16", dtype=torch.bfloat16, nonlinearity="relu", required=False),
    Case("tanh-f16", dtype=torch.float16, bidirectional=True, required=False),
)


def _combined(row: Mapping[str, str]) -> Case:
    """The case with one value for each axis; its id joins those that are not their axis's first."""
    options: dict[str, Any] = {}
    words = []
    for axis, value in row.items():
        options.update(AXES[axis][value])
        if value != next(iter(AXES[axis])):
            words.append(value)
    return Case("-".join(words) or "plain", **options)


CASES: tuple[Case, ...] = (
    *_QUICK,
    *_THOROUGH,
    *_ALONE,
    *(_combined(row) for row in covering({axis: list(values) for axis, values in AXES.items()})),
)


def product_cases() -> tuple[Case, ...]:
    """All combinations of a layer's options and kinds of input, but for `CASES`; some 500 cases."""
    chosen = {axis: list(AXES[axis]) for axis in ("cell", "dtype", "directions", "bias", "states")}
    chosen["layers"] = ["1-layer", "2-layers", "dropout"]
    chosen["call"] = ["dense", "batch-first", "unbatched", "packed", "packed-unsorted"]
    rows = (dict(zip(chosen, values, strict=True)) for values in product(*chosen.values()))
    known = {case.id for case in CASES}
    return tuple(case for case in map(_combined, rows) if case.id not in known)
