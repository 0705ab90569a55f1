"""Protects accuracy over two thousand steps: values and gradients are as accurate as eager's.

The criterion is the conformance kit's: the largest error of a tensor against float64 is at most
twice eager's own plus a few units in the last place of the tensor's largest value.
"""

from itertools import product

import pytest
from fuzz.judging import check_accuracy
from fuzzing import thorough

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
from rnnjit.testing import Case
from rnnjit.testing.calls import build

STEPS = 2000
STACKS = {
    "one layer": {"num_layers": 1},
    "two layers both ways": {"num_layers": 2, "bidirectional": True},
}


CELLS = {"tanh": RNN_TANH, "relu": RNN_RELU, "lstm": LSTM, "gru": GRU}


def case(cell, stack, packed, B):
    # Eager's own backward pass over packed rows takes the square of their number.
    lengths = (STEPS, *(17 * b for b in range(B - 1, 0, -1))) if packed else None
    return Case(
        f"two-thousand-steps-{cell}-{stack}-{B}",
        input_size=6,
        hidden_size=18,
        cell=CELLS[cell],
        T=STEPS,
        B=B,
        lengths=lengths,
        h0=True,
        **STACKS[stack],
    )


#: Every fact of a case at least once; `make test-all` takes all combinations.
FEW = [
    ("tanh", "one layer", "dense", 1),
    ("relu", "one layer", "packed", 16),
    ("tanh", "two layers both ways", "packed", 1),
    ("lstm", "one layer", "packed", 16),
    ("gru", "one layer", "dense", 1),
]
ALL = list(product(CELLS, STACKS, ["dense", "packed"], [1, 16]))


@pytest.mark.fuzz
@pytest.mark.parametrize(("cell", "stack", "form", "B"), ALL if thorough() else FEW)
def test_two_thousand_steps_are_as_accurate_as_eager(cell, stack, form, B):
    check_accuracy(build(case(cell, stack, form == "packed", B)), threads=2)
