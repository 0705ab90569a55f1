"""Protects the boundary between a backend's errors and what the user's code raises in a call."""

import signal
import time
import warnings
from collections import deque
from functools import partial
from itertools import repeat

import pytest
import torch
from faulty import Faulty, X, installing, one_warning, quietly  # noqa: F401 - fixture
from on_cpu import ON_CPU
from torch import nn
from torch.utils.checkpoint import checkpoint

import rnnjit
from rnnjit.dispatch.blame import blame, blamed, from_outside
from rnnjit.reference import ReferenceBackend


class LimitError(Exception):
    """What the user's own code raises."""


def over(*_):
    raise LimitError


def over_by_name(number, frame):
    raise LimitError


def over_without_frame(number, frame):
    del number, frame
    raise LimitError


class Handler:
    def __call__(self, number, frame):
        self.deeper()

    def deeper(self):
        raise LimitError


@pytest.fixture
def _alarm():
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted(handler, function):
    """The error of a function in which a signal handler runs."""
    signal.signal(signal.SIGALRM, handler)
    try:
        function()
    except Exception as error:  # noqa: BLE001 - what it is, is what is tested
        return error
    raise AssertionError("nothing was raised")


def waits():
    signal.raise_signal(signal.SIGALRM)
    time.sleep(10)


def raises():
    raise ValueError


def chained():
    try:
        waits()
    except LimitError as error:
        raise RuntimeError("compilation failed") from error


@pytest.mark.usefixtures("_alarm")
@pytest.mark.parametrize("function", [waits, chained])
@pytest.mark.parametrize(
    "handler", [over, over_by_name, over_without_frame, Handler(), partial(over, 1)]
)
def test_a_signal_handler_is_recognised_by_its_frame(handler, function):
    error = interrupted(handler, function)
    assert from_outside(error)
    blame(error, recorded=False)
    assert not blamed(error)


def test_an_error_of_the_code_itself_is_its_own():
    error = interrupted(signal.SIG_DFL, raises)
    assert not from_outside(error)
    blame(error, recorded=False)
    assert blamed(error)


class Slow(Faulty):
    """Raises a signal in one of its methods, as if a timer had run out there."""

    def meet(self, place):
        if place in self.where:
            signal.raise_signal(signal.SIGALRM)


@pytest.mark.usefixtures("_alarm")
@pytest.mark.parametrize("where", ["why_not", "forward", "backward", "shortcut", "short call"])
def test_a_time_limit_of_the_users_is_no_failure_of_a_backend(install, where):
    first, _ = install(Slow("first", 2, (where,)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    signal.signal(signal.SIGALRM, over)

    def call():
        y, _ = fast(X)
        if y.requires_grad:
            y.sum().backward()

    recorded = {"backward": [True], "short call": [False]}.get(where, [False, True])
    for each in recorded:
        with torch.set_grad_enabled(each), pytest.raises(LimitError):
            quietly(call)
    first.where = ()
    quietly(lambda: torch.testing.assert_close(fast(X), rnn(X)))
    assert rnnjit.explain(fast, X).calls[0].chosen == "first"


@pytest.mark.usefixtures("_alarm")
@pytest.mark.parametrize("backend", ["auto", *ON_CPU])
def test_a_timer_that_runs_out_in_a_call(backend):
    signal.signal(signal.SIGALRM, over)
    rnn = nn.RNN(64, 128)
    fast, x = rnnjit.compile(rnn, backend=backend), torch.randn(2000, 8, 64)
    with torch.no_grad():
        fast(x)
        chosen = rnnjit.explain(fast, x).calls[0].chosen
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(LimitError):
            deque(map(fast, repeat(x)), maxlen=0)
        quietly(lambda: torch.testing.assert_close(fast(x[:9]), rnn(x[:9])))
    assert rnnjit.explain(fast, x).calls[0].chosen == chosen


@pytest.mark.parametrize("recorded", [False, True])
def test_saved_tensor_hooks_that_raise(install, recorded):
    """Hooks run where autograd saves what a backend, or torch below it, computes."""

    class Recorded(Faulty):
        differentiable = True

        def forward(self, *args):
            return ReferenceBackend().forward(*args)

    install((Recorded if recorded else Faulty)("first", 2), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    hooks = torch.autograd.graph.saved_tensors_hooks
    with hooks(over, lambda held: held), pytest.raises(LimitError):
        quietly(lambda: fast(X))
    with hooks(lambda held: held, over):
        y, _ = fast(X)
        with pytest.raises(LimitError):
            quietly(lambda: y.sum().backward())
    quietly(lambda: fast(X))
    assert rnnjit.explain(fast, X).calls[0].chosen == "first"


@pytest.mark.parametrize("T", [1, 4, 40])
@pytest.mark.parametrize("backend", ["auto", *ON_CPU])
def test_checkpointing_which_ends_a_call_by_an_exception(backend, T):
    torch.manual_seed(0)
    rnn = nn.RNN(5, 7)
    fast = rnnjit.compile(rnn, backend=backend)
    x = torch.randn(T, 3, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(rnn(x)[0].sum(), x)
    for _ in range(3):  # what is saved in the first call and in later ones is compared
        y, _ = checkpoint(fast, x, use_reentrant=False)
        (grad,) = quietly(lambda: torch.autograd.grad(y.sum(), x))  # noqa: B023 - called at once
        torch.testing.assert_close(grad, expected)
    assert rnnjit.explain(fast, x).calls[0].chosen not in (None, "torch")


def test_an_error_of_a_backend_under_hooks_is_still_its_own(install):
    install(Faulty("first", 2, ("forward",)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    with torch.autograd.graph.save_on_cpu():
        one_warning(lambda: torch.testing.assert_close(fast(X), rnn(X)), "'first'")


def test_a_warning_that_is_an_error_is_no_failure(install):
    class Warns(Faulty):
        def forward(self, *args):
            warnings.warn("as the user wants it", UserWarning, stacklevel=1)
            return super().forward(*args)

    install(Warns("first", 2), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    with pytest.raises(UserWarning, match="as the user wants it"):
        quietly(lambda: fast(X))
    assert rnnjit.explain(fast, X).calls[0].chosen == "first"
