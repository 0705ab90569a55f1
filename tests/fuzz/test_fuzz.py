"""Configurations, values and strides drawn at random: every backend against eager.

`RNNJIT_FUZZ_EXAMPLES` says how many examples there are in all.
"""

import pytest
from fuzz.configurations import cases, small_cases
from fuzz.judging import check_accuracy, check_possible
from fuzz.tensors import LAYINGS, SPLASHES, laid, splashed
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnjit.testing.calls import build

pytestmark = pytest.mark.fuzz
THREADS = st.integers(1, 3)


@settings(max_examples=examples(0.5))
@given(case=cases(), layouts=LAYINGS, threads=THREADS)
def test_any_configuration_and_any_strides(case, layouts, threads):
    check_accuracy(laid(build(case), layouts), threads)


@settings(max_examples=examples(0.5))
@given(
    case=small_cases(),
    splashes=st.lists(SPLASHES, min_size=1, max_size=4),
    layouts=LAYINGS,
    threads=THREADS,
)
def test_any_values(case, splashes, layouts, threads):
    check_possible(laid(splashed(build(case), splashes), layouts), threads)
