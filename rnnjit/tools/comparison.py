"""Compares every backend with eager PyTorch on one call: errors, times, reasons to decline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend
from rnnjit.dispatch.blame import from_outside
from rnnjit.dispatch.choice import verdict_for_auto
from rnnjit.errors import UnsupportedError, described
from rnnjit.frontend.compile import compile as compile_rnn
from rnnjit.frontend.compile import why_left
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.timing import Timing, interleave
from rnnjit.spec import Problem, RNNSpec
from rnnjit.tools.call import Call
from rnnjit.tools.progress import LONG, Progress, compile_seconds
from rnnjit.tools.selection import selected
from rnnjit.tools.subject import chosen_by_auto, parts_of, subject_of

#: The outputs of a call, and its gradients.
_Everything: TypeAlias = "tuple[tuple[Tensor, ...], tuple[Tensor, ...]]"


class PassTimes(NamedTuple):
    """The times of one module.

    Attributes:
        forward: evaluation mode, no gradients recorded.
        both: training mode, forward and then backward to x, hx and every weight.
    """

    forward: Timing
    both: Timing


@dataclass(frozen=True)
class Result:
    """The result of one backend.

    Attributes:
        name: of the backend; for the module itself "nn.RNN" and the like, or the class of its cell.
        values_error: largest absolute difference of y and the last states from the exact run.
        gradients_error: the same for the gradients of x, hx and every weight.
        times: the times of the passes, or None if it does not run the call.
        reasons: why it declines the call; empty if it accepts.
        failure: the exception that the call raised, "" if it raised none.
    """

    name: str
    values_error: float | None = None
    gradients_error: float | None = None
    times: PassTimes | None = None
    reasons: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Comparison:
    """All backends on one call.

    Attributes:
        spec: the configuration of the module.
        problem: the properties of the call with gradients.
        eager: the result of the module itself, run by PyTorch.
        results: one for each backend that took part, in the order of `auto`; none for `eager`,
            which runs the module itself too.
        auto_forward: the backend that `auto` picks when no gradient is needed; those of all layers
            if a `Recurrent` has several that are no stack.
        auto_both: the same when gradients are needed.
        runs: what the module itself runs.
        exact: what the errors are differences from.
    """

    spec: RNNSpec
    problem: Problem
    eager: Result
    results: tuple[Result, ...]
    auto_forward: str
    auto_both: str
    runs: str = "PyTorch's own layer"
    exact: str = "a float64 run"

    def speedup(self, result: Result) -> tuple[float, float] | None:
        """How many times faster than eager, (forward, forward+backward); None without times.

        The least samples are compared: what else runs on the machine only adds to a time.
        """
        if result.times is None or self.eager.times is None:
            return None
        eager, times = self.eager.times, result.times
        return (
            eager.forward.least / times.forward.least,
            eager.both.least / times.both.least,
        )

    def disturbed(self) -> list[str]:
        """The rows whose least samples may not be what the call takes, see `Timing.settled`."""
        return [
            result.name
            for result in (self.eager, *self.results)
            if result.times is not None and not all(timing.settled for timing in result.times)
        ]


def compare_call(
    rnn: nn.Module,
    call: Call,
    *,
    rounds: int = 15,
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run one call through eager PyTorch and the installed backends.

    Errors are measured in evaluation mode, since dropout draws different masks in float64.

    Args:
        rnn: a layer of torch or a `Recurrent`, compiled for "eager" or not; its weights have the
            call's dtype.
        call: the inputs and output gradients.
        rounds: samples of each time, see `interleave`.
        names: the backends, or None for all.
        progress: told of `steps(rounds, names)` steps.

    Raises:
        TypeError, ValueError: as `selected` does for `names`.
        CellError: a cell computes what no backend could.
    """
    progress = progress or Progress("compare")
    subject = subject_of(rnn)
    baseline = subject.name
    both = parts_of(rnn, call, training=True, needs_grad=True)
    forward = parts_of(rnn, call, training=False, needs_grad=False)
    rnn.eval()
    exact, source = _exact(rnn, call)
    eager = _checked(baseline, rnn, call, exact)
    modules: dict[str, nn.Module] = {baseline: rnn}
    chosen, checked = _compared(names), dict[str, Result]()
    seconds = {
        name: sum(compile_seconds(each, *part) for part in dict.fromkeys(both))
        for name, each in chosen.items()
    }
    for name in sorted(chosen, key=lambda name: seconds[name] >= LONG):
        backend = chosen[name]
        reasons = tuple(
            dict.fromkeys(
                reason for part in both for reason in verdict_for_auto(backend, *part).reasons
            )
        )
        if not reasons:
            progress.begin(backend, "checking", seconds[name])
        if why_left(rnn, backend):
            # It computes no such cell, whatever the call: there is nothing to compile.
            checked[name] = Result(name, reasons=reasons)
        else:
            module = compile_rnn(rnn, backend=backend)
            checked[name] = _checked(name, module, call, exact)
            if not checked[name].reasons and not checked[name].failure:
                modules[name] = module
        progress.step()
    times = pass_times(
        modules, call, rounds=rounds, on_round=lambda: progress.step(f"timing {baseline}")
    )
    eager, *results = (
        replace(result, times=times.get(result.name))
        for result in (eager, *(checked[name] for name in chosen))
    )
    return Comparison(
        subject.spec,
        call.problem(needs_grad=True),
        eager,
        tuple(results),
        auto_forward=chosen_by_auto(forward),
        auto_both=chosen_by_auto(both),
        runs=subject.runs,
        exact=source,
    )


def steps(rounds: int, names: Iterable[str] | None = None) -> int:
    """How often `compare_call` reports progress."""
    return len(_compared(names)) + 2 * rounds


def _compared(names: Iterable[str] | None) -> dict[str, Backend]:
    """The backends to compare: PyTorch's own layer is the baseline, and no row beside it."""
    found = selected(names)
    found.pop(EAGER.name, None)
    return found


def pass_times(
    modules: Mapping[str, nn.Module],
    call: Call,
    *,
    rounds: int = 15,
    on_round: Callable[[], None] | None = None,
) -> dict[str, PassTimes]:
    """Measure interleaved times of one call to several modules; leaves them in training mode."""
    found = []
    for training, run in ((False, Call.outputs), (True, Call.gradients)):
        for module in modules.values():
            module.train(training)
        passes = {name: partial(run, call, module) for name, module in modules.items()}
        with torch.set_grad_enabled(training):
            found.append(interleave(passes, rounds=rounds, on_round=on_round))
    return {name: PassTimes(*(times[name] for times in found)) for name in modules}


def largest_error(found: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Largest absolute difference; equal infinities, and NaN in both, count as no difference."""
    errors = []
    for a, b in zip(found, exact, strict=True):
        a = a.double()
        same = (a == b) | (a.isnan() & b.isnan())
        errors.append(float((a - b).abs().masked_fill(same, 0.0).max()))
    # Python's max() ignores a NaN that is not the first element.
    return float(torch.tensor(errors, dtype=torch.float64, device="cpu").max())


def _exact(rnn: nn.Module, call: Call) -> tuple[_Everything, str]:
    """What errors are differences from, and its name: a float64 run, where there can be one."""
    own = f"{subject_of(rnn).name}'s own run"
    if not isinstance(rnn, Recurrent):
        return _everything(copy.deepcopy(rnn).double(), call.to(torch.float64)), "a float64 run"
    if _draws(rnn, call):
        return _everything(rnn, call), f"{own} from the same seed, since it draws random numbers"
    try:
        exact = _everything(copy.deepcopy(rnn).double(), call.to(torch.float64))
    except Exception as error:
        if from_outside(error):
            raise
        return _everything(rnn, call), f"{own}, since it does not run in float64"
    return exact, "a float64 run"


def _draws(module: nn.Module, call: Call) -> bool:
    """Whether a call draws random numbers."""
    with torch.random.fork_rng([]), torch.no_grad():
        before = torch.get_rng_state()
        call.outputs(module)
        return not torch.equal(torch.get_rng_state(), before)


def _everything(module: nn.Module, call: Call) -> _Everything:
    """The outputs of a call without autograd, and its gradients: the two passes that are timed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        with torch.no_grad():
            values = call.outputs(module)
        return values, call.gradients(module)


def _checked(
    name: str,
    module: nn.Module,
    call: Call,
    exact: _Everything,
) -> Result:
    try:
        values, gradients = _everything(module, call)
    except UnsupportedError as error:
        return Result(name, reasons=error.reasons)
    except Exception as error:
        if from_outside(error):
            raise
        return Result(name, failure=described(error))
    return Result(name, largest_error(values, exact[0]), largest_error(gradients, exact[1]))
