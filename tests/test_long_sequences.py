"""Two thousand steps: values and gradients are as accurate as eager's on every backend.

The measure is the conformance kit's: the largest error of a tensor against float64, at most twice
eager's own plus a few units in the last place of the tensor's largest value.
"""

import pytest
from fuzz.judging import check_accuracy

from rnnjit.testing import Case
from rnnjit.testing.calls import build

STEPS = 2000
STACKS = {
    "one layer": {"num_layers": 1},
    "two layers both ways": {"num_layers": 2, "bidirectional": True},
}


def case(nonlinearity, stack, packed, B):
    # Eager's own backward pass over packed rows takes the square of their number.
    lengths = (STEPS, *(17 * b for b in range(B - 1, 0, -1))) if packed else None
    return Case(
        f"two-thousand-steps-{nonlinearity}-{stack}-{B}",
        input_size=6,
        hidden_size=18,
        nonlinearity=nonlinearity,
        T=STEPS,
        B=B,
        lengths=lengths,
        h0=True,
        **STACKS[stack],
    )


@pytest.mark.parametrize("B", [1, 16])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_two_thousand_steps_are_as_accurate_as_eager(nonlinearity, stack, packed, B):
    check_accuracy(build(case(nonlinearity, stack, packed, B)), threads=2)
