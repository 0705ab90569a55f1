"""Compares every backend with eager PyTorch on one call: errors, times, reasons to decline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnjit.dispatch.choice import choose
from rnnjit.dispatch.registry import backends
from rnnjit.errors import UnsupportedError, described
from rnnjit.frontend.capture import capture
from rnnjit.frontend.compile import compile as compile_rnn
from rnnjit.runtime.timing import Timing, interleave
from rnnjit.spec import Problem, RNNSpec
from rnnjit.tools.call import Call


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
        name: of the backend, or "nn.RNN" and the like for the module itself.
        values_error: largest absolute difference of y and the last states from the float64 run.
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
        results: one for each installed backend, in the order of `auto`.
        auto_forward: the backend that `auto` picks when no gradient is needed.
        auto_both: the backend that `auto` picks when gradients are needed.
    """

    spec: RNNSpec
    problem: Problem
    eager: Result
    results: tuple[Result, ...]
    auto_forward: str
    auto_both: str

    def speedup(self, result: Result) -> tuple[float, float] | None:
        """How many times faster than eager, (forward, forward+backward); None without times."""
        if result.times is None or self.eager.times is None:
            return None
        eager, times = self.eager.times, result.times
        return (
            eager.forward.median / times.forward.median,
            eager.both.median / times.both.median,
        )


def compare_call(
    rnn: nn.RNNBase, call: Call, *, rounds: int = 15, on_step: Callable[[], None] | None = None
) -> Comparison:
    """Run one call through eager PyTorch and every installed backend.

    Errors are measured in evaluation mode, since dropout draws different masks in float64.

    Args:
        rnn: the module; its weights have the call's dtype and are all trainable.
        call: the inputs and output gradients.
        rounds: samples of each time, see `interleave`.
        on_step: called `steps(rounds)` times in total, for a progress bar.
    """
    spec, baseline = capture(rnn), f"nn.{type(rnn).__name__}"
    rnn.eval()
    exact = _everything(copy.deepcopy(rnn).double(), call.to(torch.float64))
    eager = _checked(baseline, rnn, call, exact)
    modules: dict[str, nn.Module] = {baseline: rnn}
    checked = []
    for name, backend in backends().items():
        module = compile_rnn(rnn, backend=backend)
        result = _checked(name, module, call, exact)
        checked.append(result)
        if not result.reasons and not result.failure:
            modules[name] = module
    if on_step is not None:
        on_step()
    times = pass_times(modules, call, rounds=rounds, on_round=on_step)
    eager, *results = (
        replace(result, times=times.get(result.name)) for result in (eager, *checked)
    )
    problem = call.problem(needs_grad=True)
    return Comparison(
        spec,
        problem,
        eager,
        tuple(results),
        auto_forward=choose(spec, problem._replace(needs_grad=False), None).name,
        auto_both=choose(spec, problem, None).name,
    )


def steps(rounds: int) -> int:
    """How often `compare_call` reports progress."""
    return 1 + 2 * rounds


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
    return float(torch.tensor(errors, dtype=torch.float64).max())


def _everything(module: nn.Module, call: Call) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The outputs of a call without autograd, and its gradients: the two passes that are timed."""
    with torch.no_grad():
        values = call.outputs(module)
    return values, call.gradients(module)


def _checked(
    name: str,
    module: nn.Module,
    call: Call,
    exact: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
) -> Result:
    try:
        values, gradients = _everything(module, call)
    except UnsupportedError as error:
        return Result(name, reasons=error.reasons)
    except Exception as error:  # noqa: BLE001 - a third party's backend may fail in any way
        return Result(name, failure=described(error))
    return Result(name, largest_error(values, exact[0]), largest_error(gradients, exact[1]))
