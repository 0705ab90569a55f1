"""Calls that use all threads, where they would not pay and after others came late."""

import sys
from contextlib import contextmanager

import pytest

from rnnjit.codegen import row_slices
from rnnjit.runtime.late_threads import LateThreads

_MODULES = ("rnnjit_numba.run", "rnnjit_tvm.run")


def always(change=setattr):
    """From now on every call that can be divided between threads is.

    Args:
        change: sets an attribute of an object.
    """
    change(row_slices, "THREAD_WORK", 0)
    change(LateThreads, "alone", lambda self, now: False)
    forget_plans()


def forget_plans():
    """Forget how calls were planned, and what was bound to a plan."""
    for name in _MODULES:
        for function in vars(sys.modules[name]).values() if name in sys.modules else ():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@contextmanager
def everywhere():
    """Within it, every call that can be divided between threads is."""
    with pytest.MonkeyPatch.context() as patch:
        always(patch.setattr)
        yield
    forget_plans()


@pytest.fixture
def always_teams():
    """Within a test, every call that can be divided between threads is."""
    with everywhere():
        yield
