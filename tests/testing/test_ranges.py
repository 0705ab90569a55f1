"""Protects what the fuzz tests take for possible (`fuzz.ranges`): sums done by hand."""

import math

import pytest
import torch
from fuzz.possible import Possible
from fuzz.ranges import Arithmetic, Range

from rnnjit.ir import GRU, LSTM
from rnnjit.testing import Case
from rnnjit.testing.calls import build

TINY = {torch.float32: 1e-40, torch.float64: 1e-310}
dtypes = pytest.mark.parametrize("dtype", list(TINY), ids=["f32", "f64"])


def total(values: list[float], dtype: torch.dtype) -> Range:
    """The range of a sum of exact values."""
    return Arithmetic(dtype).total(Range.exactly(torch.tensor(values, dtype=dtype)))


@dtypes
@pytest.mark.parametrize("count", [1, 17])
def test_a_sum_of_subnormals_may_be_flushed_and_is_no_more_than_that(dtype, count):
    tiny = TINY[dtype]
    found = total([-tiny] * count, dtype)
    possible = torch.tensor([0.0, -tiny, -count * tiny, tiny, -1.0], dtype=torch.float64)
    expected = [True, True, True, False, False]
    assert [bool(found.holds(value)) for value in possible] == expected


@dtypes
def test_a_subnormal_state_may_be_flushed(dtype):
    found = Arithmetic(dtype).activate(
        "tanh", Range.exactly(torch.tensor(TINY[dtype], dtype=dtype))
    )
    assert found.holds(torch.tensor(0.0))
    assert found.holds(torch.tensor(TINY[dtype], dtype=dtype))
    assert not found.holds(torch.tensor(1e-30))


@dtypes
def test_a_sum_of_plain_numbers_is_known_to_a_few_units(dtype):
    eps = torch.finfo(dtype).eps
    found = total([1.0, 2.0, -0.5], dtype)
    assert found.holds(torch.tensor(2.5, dtype=torch.float64))
    assert not found.holds(torch.tensor(2.5 * (1 + 100 * eps), dtype=torch.float64))


def test_terms_of_both_signs_that_overflow_may_be_anything_infinite_or_nan():
    most = torch.finfo(torch.float32).max
    found = total([most, most, -most, -most], torch.float32)
    for value in (0.0, math.inf, -math.inf, math.nan):
        assert found.holds(torch.tensor(value))


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=lambda cell: cell.name)
def test_a_layer_may_come_out_as_in_eager_and_hardly_otherwise(cell):
    call = build(Case("", input_size=3, hidden_size=4, cell=cell, T=3, B=2, h0=True))
    with torch.no_grad():
        y, last = call.module(*call.arguments())
    found = {"y": y, **dict(zip((f"{s}_n" for s in call.case.states), last, strict=True))}
    if cell is GRU:
        found["h_n"] = last
    ranges = Possible(call).ranges
    assert set(ranges) == set(found)
    for name, values in found.items():
        assert ranges[name].holds(values).all()
        assert not ranges[name].holds(values + 0.01).any()
