"""Any layer and any call of it that nn.RNN, nn.LSTM or nn.GRU takes in float32 or float64."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec
from rnnjit.testing import Case

# Mostly small, with some on both sides of a tile's edge.
SIZES = st.one_of(
    st.integers(1, 9),
    st.sampled_from([15, 16, 17, 20, 31, 32, 33, 63, 64, 65, 70]),
    st.integers(1, 70),
    st.sampled_from([1, 129, 200]),
)
BATCHES = st.one_of(st.integers(1, 5), st.sampled_from([0, 7, 8, 9, 17, 33]))
STEPS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 40]))
LONG = st.integers(200, 400)

FEW_SIZES = st.one_of(st.integers(1, 5), st.sampled_from([8, 9, 16, 17]))
FEW_BATCHES = st.integers(1, 5)
FEW_STEPS = st.one_of(st.integers(1, 5), st.just(17))


@st.composite
def cases(draw) -> Case:
    """Configurations of all sizes, with dropout too."""
    case = {"input_size": draw(SIZES), "hidden_size": draw(SIZES)}
    rare = draw(st.integers(0, 29)) == 0 and max(case.values()) <= 70
    T, B = draw(LONG if rare else STEPS), draw(st.integers(1, 3) if rare else BATCHES)
    layers = draw(st.integers(1, 3))
    dropout = draw(st.sampled_from([0.0, 0.0, 0.0, 0.4])) if layers > 1 else 0.0
    kinds = ["normal"] * 4 + ["tiny", "saturated", "nan", "inf"]
    values = draw(st.sampled_from(kinds)) if B else "normal"
    cell = draw(st.sampled_from([RNN_TANH, RNN_RELU, LSTM, LSTM, GRU, GRU]))
    H, P = case["hidden_size"], 0
    if cell == LSTM and H > 1:
        P = draw(st.one_of(st.just(0), st.integers(1, H - 1)))
    rest = draw(_rest(T, B, layers, cell, projected=P > 0))
    return Case(**case, **rest, proj_size=P, dropout=dropout, values=values)


@st.composite
def small_cases(draw) -> Case:
    """Configurations that are small enough for `fuzz.possible`: without dropout or projection."""
    T, B, layers = draw(FEW_STEPS), draw(FEW_BATCHES), draw(st.integers(1, 3))
    sizes = {"input_size": draw(FEW_SIZES), "hidden_size": draw(FEW_SIZES)}
    cell = draw(st.sampled_from([RNN_TANH, RNN_RELU, LSTM, GRU]))
    return Case(**sizes, **draw(_rest(T, B, layers, cell)))


@st.composite
def _rest(draw, T: int, B: int, layers: int, cell: CellSpec, *, projected: bool = False) -> dict:
    """Every field of a case but those that the two strategies above draw themselves."""
    form = draw(st.sampled_from(["dense", "dense", "unbatched", "packed", "packed"]))
    lengths, enforce_sorted = None, draw(st.booleans())
    if form == "packed" and B:
        lengths = draw(_lengths(T, B))
        lengths = tuple(sorted(lengths, reverse=True)) if enforce_sorted else tuple(lengths)
    bias, bidirectional = draw(st.booleans()), draw(st.booleans())
    kinds = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if bias else [])
    names = [
        f"{kind}_l{layer}{suffix}"
        for layer in range(layers)
        for suffix in (["", "_reverse"] if bidirectional else [""])
        for kind in kinds + (["weight_hr"] if projected else [])
    ]
    last = [f"{state}_n" for state in cell.states]
    return {
        "id": f"fuzz-{draw(st.integers(0, 10**6))}",
        "num_layers": layers,
        "cell": cell,
        "bias": bias,
        "batch_first": draw(st.booleans()),
        "bidirectional": bidirectional,
        "T": T,
        "B": B,
        "lengths": lengths,
        "enforce_sorted": enforce_sorted,
        "unbatched": form == "unbatched",
        "h0": draw(st.booleans()),
        "training": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.float64])),
        "loss": draw(st.sampled_from(["all", "y", "sum", *last])),
        "frozen": draw(_frozen(names, [f"{state}0" for state in cell.states])),
    }


def _lengths(T: int, B: int) -> st.SearchStrategy:
    """Of B sequences, the longest at most T: any, equal, or all but one of a single step."""
    return st.one_of(
        st.lists(st.integers(1, T), min_size=B, max_size=B),
        st.just([T] * B),
        st.just([1] * B),
        st.integers(0, B - 1).map(lambda at: [T if b == at else 1 for b in range(B)]),
    )


def _frozen(weights: list[str], states: list[str]) -> st.SearchStrategy:
    """Nothing, all weights, or any set that leaves a weight, lest there be no gradient."""
    some = st.integers(0, len(weights) - 1).flatmap(
        lambda kept: st.frozensets(
            st.sampled_from([*weights[:kept], *weights[kept + 1 :], "x", *states]),
        )
    )
    return st.one_of(st.just(frozenset()), st.just(frozenset({"weights"})), some)
