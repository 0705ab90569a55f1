"""Protects every backend on random configurations and strides, against eager.

`RNNJIT_FUZZ_EXAMPLES` says how many examples there are in all, here and in `test_any_values.py`.
"""

import pytest
from fuzz.configurations import cases
from fuzz.judging import check_accuracy
from fuzz.tensors import LAYINGS, laid
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnjit.testing.calls import build

pytestmark = pytest.mark.fuzz


@settings(max_examples=examples(0.5))
@given(case=cases(), layouts=LAYINGS, threads=st.integers(1, 3))
def test_any_configuration_and_any_strides(case, layouts, threads):
    check_accuracy(laid(build(case), layouts), threads)
