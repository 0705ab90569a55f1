"""Whole configurations drawn at random agree with eager, in values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnjit
from rnnjit.testing import Case, RecomputeBackend
from rnnjit.testing.checks import check_forward, check_gradients

FAST = [b for b in rnnjit.backends().values() if not (b.differentiable or b.missing())]

# Mostly small, with some on both sides of a tile's edge. A float32 relu whose input lies within
# rounding of zero may take the other side than eager's: with sizes like these that is a rare event.
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 20, 31, 33, 64, 65, 70]))
BATCHES = st.one_of(st.integers(1, 5), st.sampled_from([7, 8, 9, 17]))


@st.composite
def cases(draw):
    """Any configuration and any call that nn.RNN takes in float32 or float64."""
    num_layers = draw(st.integers(1, 3))
    packed = draw(st.booleans())
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9)) if packed else None
    enforce_sorted = draw(st.booleans())
    if lengths and enforce_sorted:
        lengths.sort(reverse=True)
    bias, bidirectional = draw(st.booleans()), draw(st.booleans())
    return Case(
        id=str(draw(st.integers(0, 10**6))),
        input_size=draw(SIZES),
        hidden_size=draw(SIZES),
        num_layers=num_layers,
        nonlinearity=draw(st.sampled_from(["tanh", "relu"])),
        bias=bias,
        batch_first=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.4])) if num_layers > 1 else 0.0,
        bidirectional=bidirectional,
        T=draw(st.one_of(st.integers(1, 9), st.just(30))),
        B=draw(BATCHES),
        lengths=None if lengths is None else tuple(lengths),
        enforce_sorted=enforce_sorted,
        unbatched=draw(st.sampled_from([False, False, True])) if not packed else False,
        h0=draw(st.booleans()),
        training=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        layout=draw(st.sampled_from(["contiguous", "transposed", "offset", "strided", "expanded"])),
        values=draw(st.sampled_from(["normal"] * 4 + ["tiny", "saturated", "nan", "inf"])),
        loss=draw(st.sampled_from(["both", "y", "h_n", "sum"])),
        frozen=draw(frozen(num_layers, bias=bias, bidirectional=bidirectional)),
    )


def frozen(num_layers, *, bias, bidirectional):
    """Nothing, or any set of inputs and weights but for one weight, lest there be no gradient."""
    kinds = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if bias else [])
    names = [
        f"{kind}_l{layer}{suffix}"
        for layer in range(num_layers)
        for suffix in (["", "_reverse"] if bidirectional else [""])
        for kind in kinds
    ]
    some = st.integers(0, len(names) - 1).flatmap(
        lambda kept: st.frozensets(
            st.sampled_from([*names[:kept], *names[kept + 1 :], "x", "h0"]),
        )
    )
    return st.one_of(st.just(frozenset()), st.just(frozenset({"weights"})), some)


def agrees_with_eager(backend, case):
    check_forward(backend, case)
    check_gradients(backend, case)


@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
@settings(max_examples=400)
@given(case=cases())
def test_a_backend_agrees_with_eager(backend, case):
    agrees_with_eager(backend, case)


@pytest.mark.parametrize("backend", ["auto", RecomputeBackend()], ids=["auto", "recompute"])
@settings(max_examples=100)
@given(case=cases())
def test_the_core_agrees_with_eager(backend, case):
    agrees_with_eager(backend, case)
