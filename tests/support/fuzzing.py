"""How many examples the fuzz tests look at, and which, by environment variables."""

import os

VARIABLE = "RNNJIT_FUZZ_EXAMPLES"
_ANEW = "RNNJIT_FUZZ_ANEW"
_DEFAULT = 40


def thorough() -> bool:
    """Whether the number of examples is set: slow backends are then taken too."""
    return VARIABLE in os.environ


def anew() -> bool:
    """Whether examples are drawn anew in each run; otherwise every run draws the same."""
    return _ANEW in os.environ


def examples(share: float) -> int:
    """The number of examples for a test that has this share of them."""
    return max(1, round(share * int(os.environ.get(VARIABLE, _DEFAULT))))
