"""Measuring: interleaved timing, and the comparison of backends with eager PyTorch."""

from rnnjit.bench.call import Call, random_call
from rnnjit.bench.comparison import Comparison, Result, compare, pass_times
from rnnjit.bench.timing import Timing, interleave

__all__ = [
    "Call",
    "Comparison",
    "Result",
    "Timing",
    "compare",
    "interleave",
    "pass_times",
    "random_call",
]
