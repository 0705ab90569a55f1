"""Holds every backend of this machine that accepts a call against eager, on that call.

What is promised of a result:

* Values that are finite, come from finite values and could not have overflowed on the way are as
  accurate as the conformance kit demands (`rnnjit.testing.tolerances`): the largest error of a
  tensor against float64 is at most twice eager's own, plus a few units in the last place of the
  tensor's largest value. float64, for which there is no wider run, is allowed four times.
  Eager's error is the larger of two, of the call as it is and of one whose tensors are contiguous,
  for which it has other ways. And where huge terms cancel, what is left depends on the order of the
  sum: such values have to be possible, as those below, and no more.
* NaN and infinities stand where eager has them, where there is but one answer. There is more than
  one where a sum may overflow in one order and not in another, or where an infinity is multiplied
  by what may be rounded to zero or to either sign. `fuzz.possible` knows: every value has to be
  possible there, whoever computed it.
* The sign of a zero depends on the order of a sum and is not promised.
* Where a relu's input is within rounding of zero its gradient is 0 or 1 at will. Where a change of
  the weights by a few units in the last place changes a float64 gradient by leaps, such leaps are
  allowed.
* `numba` and `tvm` give the same bits for any strides and any number of threads.
"""

from __future__ import annotations

from contextlib import suppress

import onednn
import torch
from accepted import accepts
from fuzz.possible import Possible
from fuzz.tensors import contiguous
from fuzzing import thorough
from hypothesis import currently_in_test_context, event
from on_cpu import ON_CPU
from teams import everywhere

import rnnjit
from rnnjit.testing import RecomputeBackend
from rnnjit.testing.calls import Call, Values
from rnnjit.testing.compare import Standard, compare, same_numbers
from rnnjit.testing.procedures import with_gradients, without_gradients
from rnnjit.testing.tolerances import InexactError, largest

#: Inductor compiles for a minute before it has met every kind of call.
SLOW = () if thorough() else ("inductor",)
BACKENDS = {
    **{name: rnnjit.backends()[name] for name in ON_CPU if name not in SLOW},
    "auto": "auto",
    "recompute": RecomputeBackend(),
}
BITWISE = {"numba", "tvm"}
_LARGEST = 1e38
#: Of such terms of a sum, if they cancel, no digit is left that all orders agree upon.
_HUGE = 1e4
_JITTER = 8  # units in the last place
_LEAP = 20
_LONG = 1000  # steps, over whose sum the order of the terms shows


def check_accuracy(call: Call, threads: int) -> None:
    """Every backend is as accurate as eager, with NaN and infinities in eager's places."""
    standard = Standard(with_gradients, call)
    for name, got in _results(call, threads):
        try:
            if name == "recompute" and call.case.T >= _LONG:
                _compare_step_by_step(got, call)
            else:
                _compare(got, standard, call)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def check_possible(call: Call, threads: int) -> None:
    """Every backend's values are possible, and as accurate as eager's where that has a meaning."""
    possible = Possible(call)
    certain = all(bool(r.decided().all()) for r in possible.ranges.values())
    calm = certain and possible.peak < _LARGEST and _largest_given(call) < _HUGE
    event("judged by", "accuracy" if calm else "ranges alone")
    standard = Standard(with_gradients, call) if calm else None
    _hold("eager", with_gradients(call.module, call), possible)
    for name, got in _results(call, threads):
        _hold(name, got, possible)
        try:
            if standard is not None:
                _compare(got, standard, call)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def _largest_given(call: Call) -> float:
    """The largest magnitude that a call is given."""
    given = [*call.inputs().values(), *call.incoming().values()]
    return max(largest(tensor.detach()) for tensor in given)


def _hold(name: str, got: Values, possible: Possible) -> None:
    for part, allowed in possible.ranges.items():
        found = got[part]
        if found is None:
            raise AssertionError(f"{name}: {part} is missing")
        wrong = ~allowed.holds(found)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            one = allowed[at]
            raise AssertionError(
                f"{name}: {part} at {list(at)} is {float(found[at].detach())}, possible is from "
                f"{float(one.lo)} to {float(one.hi)} (a number: {bool(one.num)}), "
                f"NaN: {bool(one.nan)}"
            )


def _results(call: Call, threads: int):
    """The name of each backend and its results, of a call that is not recorded and one that is."""
    before = torch.get_num_threads()
    try:
        for name, backend in BACKENDS.items():
            if backend != "auto" and not accepts(backend, call.case):
                _note(f"declined by {name}")
                continue
            # By eager first: with "auto", `compile` leaves cells alone that nobody else computes.
            fast = rnnjit.compile(call.module, backend="eager")
            fast.backend = backend
            torch.set_num_threads(threads)
            with everywhere():
                recorded, plain = with_gradients(fast, call), without_gradients(fast, call)
            if name in BITWISE:
                torch.set_num_threads(1)
                other = contiguous(call)
                again = with_gradients(rnnjit.compile(other.module, backend=name), other)
                _expect_same(f"{name}: contiguous, on one thread", again, recorded)
                _expect_same(f"{name}: unrecorded", plain, {n: recorded[n] for n in plain})
            yield name, recorded
            yield name, recorded | plain
    finally:
        torch.set_num_threads(before)


def _note(what: str) -> None:
    """Count it in the statistics, if Hypothesis runs the test."""
    if currently_in_test_context():
        event(what)


def _expect_same(what: str, got: Values, expected: Values) -> None:
    for name, one in expected.items():
        other = got[name]
        same = one is other if one is None or other is None else same_numbers(one, other)
        if not same:
            raise AssertionError(f"{what}: {name} has other bits")


def _compare(got: Values, standard: Standard, call: Call) -> None:
    try:
        compare(got, standard)
    except InexactError:
        with suppress(InexactError):
            compare(got, Standard(with_gradients, contiguous(call)))
            return
        if "relu" not in call.case.cell.operations or not _leaps(standard, call):
            raise
        _note("a relu within rounding of its edge")
        compare({**got, **_gradients_of(standard)}, standard)


def _compare_step_by_step(got: Values, call: Call) -> None:
    """Hold gradients of weights that autograd sums over the steps against eager's of that kind.

    oneDNN, which eager has for some layers, sums them in one product: over thousands of steps its
    error is a fifth.
    """
    with onednn.switched(enabled=False):
        _compare(got, Standard(with_gradients, call), call)


def _gradients_of(standard: Standard) -> Values:
    found = {n: standard.expected(n) for n in standard.names if n.startswith("the gradient")}
    return {name: None if one is None else one.eager for name, one in found.items()}


def _leaps(standard: Standard, call: Call) -> bool:
    """Whether float64 gradients change by leaps where weights change by a little."""
    eps = torch.finfo(call.case.dtype).eps
    wide = call.to(torch.float64)
    truth = with_gradients(wide.module, wide)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        near = call.to(torch.float64)
        for parameter in near.module.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
            parameter.data *= 1 + 2 * _JITTER * eps * noise
        for name, value in with_gradients(near.module, near).items():
            expected, true = standard.expected(name), truth[name]
            if not name.startswith("the gradient") or None in (value, expected, true):
                continue
            change = (value - true).abs().nan_to_num(0, 0)
            if float(change.max()) > _LEAP * (expected.own + eps * expected.scale):
                return True
    return False
