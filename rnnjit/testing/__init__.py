"""The conformance kit: what every backend must do, held against eager nn.RNN, nn.LSTM and nn.GRU.

    from rnnjit.testing import conformance

    @conformance("mine", xfails={"mine-gradients-relu-bf16": "relu is not done in bfloat16 yet"})
    def test_conformance(backend, case, check):
        check(backend, case)

Without pytest, `run("mine")` does the same and gives a `Report`.

The kit's pytest plugin lives in this package and is therefore imported by every pytest run on a
machine that has rnnjit: the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnjit.testing.case import Case
    from rnnjit.testing.cases import CASES
    from rnnjit.testing.checks import CHECKS, Check
    from rnnjit.testing.recompute import RecomputeBackend
    from rnnjit.testing.runner import Report, Result, count, run
    from rnnjit.testing.suite import conformance

_HOMES = {
    "CASES": "cases",
    "CHECKS": "checks",
    "Case": "case",
    "Check": "checks",
    "RecomputeBackend": "recompute",
    "Report": "runner",
    "Result": "runner",
    "conformance": "suite",
    "count": "runner",
    "run": "runner",
}

__all__ = [
    "CASES",
    "CHECKS",
    "Case",
    "Check",
    "RecomputeBackend",
    "Report",
    "Result",
    "conformance",
    "count",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
