"""How many examples the fuzz tests look at, by one environment variable."""

import os

VARIABLE = "RNNJIT_FUZZ_EXAMPLES"
_DEFAULT = 40


def thorough() -> bool:
    """Whether the variable is set: examples are then drawn anew in each run."""
    return VARIABLE in os.environ


def examples(share: float) -> int:
    """The number of examples for a test that has this share of them."""
    return max(1, round(share * int(os.environ.get(VARIABLE, _DEFAULT))))
