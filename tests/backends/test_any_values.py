"""Protects every backend on random values and strides, with NaN and infinities; see `judging`."""

import pytest
from fuzz.configurations import small_cases
from fuzz.judging import check_possible
from fuzz.tensors import LAYINGS, SPLASHES, laid, splashed
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnjit.testing.calls import build

pytestmark = pytest.mark.fuzz


@settings(max_examples=examples(0.5))
@given(
    case=small_cases(),
    splashes=st.lists(SPLASHES, min_size=1, max_size=4),
    layouts=LAYINGS,
    threads=st.integers(1, 3),
)
def test_any_values(case, splashes, layouts, threads):
    check_possible(laid(splashed(build(case), splashes), layouts), threads)
