"""The cases of the kit: a quick subset, covering arrays, and products of a layer's options.

There is one covering array for each of torch's layers, one for cells as users write them, and one
for int8 matrices. Each axis of it is one option, such as the dtype, and has a few values. Any two
values of different axes occur together in some case of `CASES`. `product_cases` combines all values
of fewer axes, for a run that may take minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
from rnnjit.testing.case import Case
from rnnjit.testing.covering import covering

Options = Mapping[str, Any]
#: For each axis its values, with the fields of `Case` that each sets.
Axes = Mapping[str, Mapping[str, Options]]

#: The cells that every backend computes, on pain of failing the kit; others it may decline.
REQUIRED_CELLS = frozenset({RNN_TANH, RNN_RELU})

_F64 = torch.float64
_UNEVEN = (3, 7, 1, 5, 7)
_SORTED = (6, 4, 4, 1)
_UNSORTED: Options = {"lengths": _UNEVEN, "enforce_sorted": False}
#: 19 sequences: more rows than a register tile in the first steps, one row in the last.
_STAIRCASE = (*(9,) * 10, 5, 5, 5, *(2,) * 5, 1)

_LAYOUTS = ("contiguous", "transposed", "offset", "strided", "expanded")
_VALUES = ("normal", "tiny", "saturated", "nan", "inf")
_RNN: Axes = {
    "cell": {"tanh": {}, "relu": {"cell": RNN_RELU}},
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
    "layout": {layout: {"layout": layout} for layout in _LAYOUTS},
    "values": {values: {"values": values} for values in _VALUES},
    "loss": {f"through-{loss}": {"loss": loss} for loss in ("all", "y", "h_n", "sum")},
    "frozen": {
        "trained": {},
        "frozen-x": {"frozen": frozenset({"x"})},
        "frozen-weights": {"frozen": frozenset({"weights"})},
        "frozen-all-but-h0": {"frozen": frozenset({"weights", "x"}), "h0": True},
        "frozen-all-but-x": {"frozen": frozenset({"weights", "h0"})},
        "frozen-some": {"frozen": frozenset({"weight_hh_l0", "bias_ih_l0", "weight_ih_l1"})},
    },
}


def _some(axis: str, *names: str) -> Mapping[str, Options]:
    """Some values of an axis of nn.RNN's."""
    return {name: _RNN[axis][name] for name in names}


#: What depends on a layer's gates and states combined with every option; of what the core does for
#: all layers alike (`_RNN` has more of it), few values.
_GATED: Axes = {
    "dtype": _RNN["dtype"],
    "directions": _RNN["directions"],
    "layers": _some("layers", "1-layer", "2-layers", "3-layers", "dropout"),
    "bias": _RNN["bias"],
    "call": _some(
        *("call", "dense", "steps-1", "batch-1", "batch-33", "batch-first", "unbatched"),
        *("packed", "packed-unsorted", "packed-staircase"),
    ),
    "input": _some("input", "input-6", "input-1", "input-37"),
    "states": _RNN["states"],
    "layout": _RNN["layout"],
    "values": _RNN["values"],
}
_FROZEN: Mapping[str, Options] = {
    **_some("frozen", "trained", "frozen-x", "frozen-weights"),
    "frozen-some": {
        "frozen": frozenset({"h0", "weight_hh_l0", "bias_ih_l0", "weight_ih_l1", "bias_hh_l1"})
    },
}
_LSTM: Axes = {
    "cell": {"lstm": {"cell": LSTM}},
    **_GATED,
    "hidden": {
        **_some("hidden", "hidden-20", "hidden-1", "hidden-130"),
        **{
            f"hidden-{H}-projected-{P}": {"hidden_size": H, "proj_size": P}
            for H, P in ((20, 7), (33, 1), (70, 33))
        },
    },
    "loss": {f"through-{loss}": {"loss": loss} for loss in ("all", "y", "h_n", "c_n", "sum")},
    "frozen": {
        **_FROZEN,
        "frozen-all-but-h0": {"frozen": frozenset({"weights", "x", "c0"}), "h0": True},
        "frozen-all-but-c0": {"frozen": frozenset({"weights", "x", "h0"}), "h0": True},
    },
}
_GRU: Axes = {
    "cell": {"gru": {"cell": GRU}},
    **_GATED,
    "hidden": _some("hidden", "hidden-20", "hidden-1", "hidden-33", "hidden-130"),
    "loss": _RNN["loss"],
    "frozen": {**_FROZEN, **_some("frozen", "frozen-all-but-h0")},
}

_USER: Axes = {
    # Each in one dtype, since each is compiled for each.
    "cell": {
        "leaky": {"user_cell": "leaky"},
        "peephole-f64": {"user_cell": "peephole", "dtype": _F64},
        "timed": {"user_cell": "timed"},
        "integrator-f64": {"user_cell": "integrator", "dtype": _F64},
    },
    **{axis: values for axis, values in _GATED.items() if axis not in ("dtype", "layers")},
    "layers": _some("layers", "1-layer", "2-layers", "dropout"),
    "hidden": _some("hidden", "hidden-20", "hidden-1", "hidden-130"),
    "loss": _some("loss", "through-all", "through-y", "through-h_n"),
    "frozen": _some("frozen", "trained", "frozen-x", "frozen-weights"),
}

#: One step needs the integers of its inputs alone; in few steps few numbers may be in doubt, see
#: `rnnjit.testing.int8`.
_INT8: Axes = {
    "matrices": {"int8": {"quantized": True}},
    "cell": {
        "tanh": {},
        "lstm": {"cell": LSTM},
        "gru": {"cell": GRU},
        "projected-lstm": {"cell": LSTM, "proj_size": 7},
    },
    "call": {
        "steps-1": {"T": 1},
        "steps-1-batch-1": {"T": 1, "B": 1},
        "steps-1-batch-70": {"T": 1, "B": 70},
        "batch-1": {"B": 1, "T": 5},
        "batch-17": {"B": 17, "T": 2},
        "batch-first": {"batch_first": True, "B": 3, "T": 3},
        "packed": {"lengths": (2, 3, 1, 3, 2), "enforce_sorted": False},
    },
    "directions": _RNN["directions"],
    "layers": _some("layers", "1-layer", "2-layers"),
    "bias": _RNN["bias"],
    "hidden": {f"hidden-{H}": {"hidden_size": H} for H in (20, 33)},
    "input": _some("input", "input-6", "input-1", "input-37"),
    "states": _RNN["states"],
    "layout": _some("layout", "contiguous", "transposed", "offset", "strided"),
    "values": {**_some("values", "normal", "saturated", "nan"), "ties": {"values": "ties"}},
}

#: What the covering arrays combine, by layer. Any two values of a layer's go together: what one
#: needs of another axis (an initial state, a second layer), it sets itself.
AXES: Mapping[str, Axes] = {
    "RNN": _RNN,
    "LSTM": _LSTM,
    "GRU": _GRU,
    "Recurrent": _USER,
    "int8": _INT8,
}

_QUICK = (
    Case("tanh", quick=True, thorough=True),
    Case("relu-f64", cell=RNN_RELU, dtype=_F64, h0=True, quick=True, thorough=True),
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
    Case("relu", cell=RNN_RELU, quick=True),
    Case("batch-1", B=1, hidden_size=33, h0=True, quick=True),
    Case("bidirectional", bidirectional=True, h0=True, quick=True),
    Case("packed", lengths=_SORTED, quick=True),
    Case("nan", values="nan", quick=True),
    Case("nan-relu", values="nan", cell=RNN_RELU, quick=True),
    Case("transposed", layout="transposed", h0=True, quick=True),
    Case("through-y", loss="y", h0=True, quick=True),
    Case("through-h_n", loss="h_n", h0=True, quick=True),
    Case("plain-lstm", cell=LSTM, h0=True, quick=True),
    Case("through-c_n-lstm", cell=LSTM, loss="c_n", h0=True, quick=True),
    Case("plain-gru", cell=GRU, h0=True, quick=True),
    Case(
        "packed-bidirectional-2-layers-projected-lstm",
        cell=LSTM,
        hidden_size=9,
        proj_size=4,
        num_layers=2,
        bidirectional=True,
        h0=True,
        quick=True,
        thorough=True,
        **_UNSORTED,
    ),
    Case(
        "packed-bidirectional-gru",
        cell=GRU,
        hidden_size=9,
        bidirectional=True,
        h0=True,
        quick=True,
        thorough=True,
        **_UNSORTED,
    ),
    Case("plain-leaky", user_cell="leaky", h0=True, quick=True, thorough=True),
    Case(
        "packed-bidirectional-peephole-f64",
        user_cell="peephole",
        dtype=_F64,
        hidden_size=9,
        bidirectional=True,
        h0=True,
        quick=True,
        thorough=True,
        **_UNSORTED,
    ),
    Case("plain-timed", user_cell="timed", quick=True),
    Case("plain-integrator-f64", user_cell="integrator", dtype=_F64, h0=True, quick=True),
    Case("step-int8", quantized=True, T=1, B=17, h0=True, values="ties", quick=True, thorough=True),
    Case("step-lstm-int8", quantized=True, cell=LSTM, T=1, h0=True, quick=True, thorough=True),
    Case("step-gru-int8", quantized=True, cell=GRU, T=1, h0=True, quick=True, thorough=True),
    Case("lstm-int8", quantized=True, cell=LSTM, h0=True, quick=True),
    Case("nan-gru-int8", quantized=True, cell=GRU, values="nan", h0=True, quick=True),
    Case(
        "packed-bidirectional-2-layers-projected-lstm-int8",
        cell=LSTM,
        quantized=True,
        hidden_size=9,
        proj_size=4,
        num_layers=2,
        bidirectional=True,
        h0=True,
        quick=True,
        thorough=True,
        **_UNSORTED,
    ),
    Case("leaky-int8", quantized=True, user_cell="leaky", h0=True, quick=True),
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
    # In float64: in float32 eager itself, which is then oneDNN's, needs its output unchanged.
    Case("h0-lstm-f64", cell=LSTM, h0=True, dtype=_F64, thorough=True),
    Case("h0-gru-f64", cell=GRU, h0=True, dtype=_F64, thorough=True),
    Case("stack-integrator", user_cell="integrator", num_layers=2, dtype=_F64, thorough=True),
)

#: Sizes and dtypes that are too slow, or too seldom accepted, to be combined with all others.
_ALONE = (
    Case("large", input_size=260, hidden_size=300, T=12, B=65, h0=True),
    Case("many-rows", input_size=3, hidden_size=9, T=64, B=40, loss="sum", h0=True),
    Case("long", T=200, B=4, hidden_size=33),
    Case("long-batch-1-bidirectional", T=220, B=1, hidden_size=24, bidirectional=True, loss="h_n"),
    Case("dropout-packed", num_layers=3, dropout=0.5, lengths=_SORTED, h0=True),
    Case("long-lstm", cell=LSTM, T=200, B=4, hidden_size=33, h0=True),
    Case("long-gru", cell=GRU, T=200, B=4, hidden_size=33, h0=True),
    Case("single-int8", quantized=True, T=1, B=1, input_size=1, hidden_size=1, h0=True),
    Case("relu-int8", quantized=True, cell=RNN_RELU, T=3, input_size=5, hidden_size=129, h0=True),
    Case("wide-lstm-int8", quantized=True, cell=LSTM, T=1, B=65, input_size=260, hidden_size=257),
    Case("batch-0", B=0, required=False),
    Case("batch-0-lstm", cell=LSTM, B=0, required=False),
    Case("tanh-f16", dtype=torch.float16, bidirectional=True, required=False),
    Case("gru-f16", dtype=torch.float16, cell=GRU, required=False),
)

_BF16: Mapping[str, Options] = {
    "tanh": {"h0": True},
    "relu": {"cell": RNN_RELU},
    "single": {"T": 1, "B": 1, "input_size": 1, "hidden_size": 1, "h0": True},
    "nan-relu": {"cell": RNN_RELU, "values": "nan"},
    "packed-bidirectional-2-layers": {
        "input_size": 5,
        "hidden_size": 7,
        "num_layers": 2,
        "bidirectional": True,
        "h0": True,
        "thorough": True,
        **_UNSORTED,
    },
    "packed-staircase": {"hidden_size": 33, "lengths": _STAIRCASE, "loss": "h_n"},
    "lstm": {"cell": LSTM},
    "odd-lstm": {"cell": LSTM, "input_size": 5, "hidden_size": 7, "h0": True},
    "steps-1-lstm": {"cell": LSTM, "T": 1, "B": 33, "input_size": 37, "hidden_size": 130},
    "through-c_n-lstm": {"cell": LSTM, "loss": "c_n", "batch_first": True, "h0": True},
    "nan-lstm": {"cell": LSTM, "values": "nan", "bidirectional": True},
    "no-bias-frozen-x-lstm": {
        "cell": LSTM,
        "bias": False,
        "layout": "transposed",
        "frozen": frozenset({"x"}),
    },
    "packed-bidirectional-2-layers-projected-lstm": {
        "cell": LSTM,
        "hidden_size": 9,
        "proj_size": 5,
        "num_layers": 2,
        "h0": True,
        "thorough": True,
        "bidirectional": True,
        **_UNSORTED,
    },
    "odd-gru": {"cell": GRU, "input_size": 5, "hidden_size": 7, "h0": True, "thorough": True},
    "dropout-gru": {"cell": GRU, "num_layers": 2, "dropout": 0.4, "batch_first": True},
    "packed-bidirectional-gru": {
        "cell": GRU,
        "hidden_size": 33,
        "input_size": 37,
        "bidirectional": True,
        **_UNSORTED,
    },
    "through-h_n-gru": {"cell": GRU, "loss": "h_n", "T": 200, "B": 4, "hidden_size": 33},
    "inf-gru": {"cell": GRU, "values": "inf", "unbatched": True},
    "packed-bidirectional-leaky": {
        "user_cell": "leaky",
        "input_size": 5,
        "hidden_size": 7,
        "bidirectional": True,
        "h0": True,
        **_UNSORTED,
    },
    "timed": {"user_cell": "timed", "input_size": 5, "hidden_size": 33, "num_layers": 2},
    "integrator": {"user_cell": "integrator", "hidden_size": 7, "h0": True, "loss": "h_n"},
}


#: Those of them that are in float16, too.
_F16 = (
    *("relu", "single", "nan-relu", "packed-bidirectional-2-layers", "odd-lstm", "inf-gru"),
    *("packed-bidirectional-2-layers-projected-lstm", "packed-bidirectional-gru", "integrator"),
)


def _in_halves() -> Iterator[Case]:
    """The cases in bfloat16 and float16, which a backend may decline."""
    for name, options in _BF16.items():
        yield Case(f"{name}-bf16", dtype=torch.bfloat16, required=False, **options)
    for name in _F16:
        yield Case(f"{name}-f16", dtype=torch.float16, required=False, **_BF16[name])


def _combined(axes: Axes, row: Mapping[str, str]) -> Case:
    """The case with one value for each axis; its id joins those that are not what is usual."""
    options: dict[str, Any] = {}
    words = []
    for axis, value in row.items():
        options.update(axes[axis][value])
        named = len(axes[axis]) == 1 or "user_cell" in axes[axis][value]
        if named or value != next(iter(axes[axis])):
            words.append(value)
    return Case("-".join(words) or "plain", **options)


def _covering(axes: Axes) -> Iterator[Case]:
    """Cases in which any two values of two axes meet."""
    for row in covering({axis: list(values) for axis, values in axes.items()}):
        yield _combined(axes, row)


CASES: tuple[Case, ...] = (
    *_QUICK,
    *_THOROUGH,
    *_ALONE,
    *_in_halves(),
    *(case for axes in AXES.values() for case in _covering(axes)),
)

_PRODUCTS: dict[str, dict[str, list[str]]] = {
    "RNN": {
        "layers": ["1-layer", "2-layers", "dropout"],
        "call": ["dense", "batch-first", "unbatched", "packed", "packed-unsorted"],
    },
    "LSTM": {
        "layers": ["1-layer", "2-layers"],
        "call": ["dense", "packed-unsorted"],
        "hidden": ["hidden-20", "hidden-20-projected-7"],
    },
    "GRU": {"layers": ["1-layer", "2-layers"], "call": ["dense", "packed-unsorted"]},
}


def product_cases() -> tuple[Case, ...]:
    """All combinations of a layer's options and kinds of input, but for `CASES`; some 600 cases."""
    found: list[Case] = []
    for layer, more in _PRODUCTS.items():
        axes = AXES[layer]
        shared = ("cell", "dtype", "directions", "bias", "states")
        chosen = {axis: list(axes[axis]) for axis in shared} | more
        found += [
            _combined(axes, dict(zip(chosen, values, strict=True)))
            for values in product(*chosen.values())
        ]
    known = {case.id for case in CASES}
    return tuple(case for case in found if case.id not in known)
