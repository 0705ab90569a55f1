"""`rnnjit.tune`: times the backends on a user's own calls, so that `auto` takes the fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.choice import verdict_for_auto
from rnnjit.dispatch.registry import backends
from rnnjit.errors import described
from rnnjit.frontend.compile import compile as compile_rnn
from rnnjit.frontend.compile import copy_sharing_parameters
from rnnjit.frontend.lowering import lower
from rnnjit.runtime.timing import interleave
from rnnjit.runtime.torch_private import forget_pre_hooks
from rnnjit.spec import Problem
from rnnjit.tools.observe import Seen, observe


@dataclass(frozen=True)
class TunedCall:
    """The measurements for one RNN inside a module.

    Attributes:
        name: path of the RNN in the module, "" for the module itself.
        problem: the properties of the call.
        seconds: median seconds of one call by backend, the fastest first; with the backward pass if
            gradients are needed.
        failures: errors of the backends that accepted the call but raised, by name.
        note: why nothing was measured, or "".
    """

    name: str
    problem: Problem
    seconds: dict[str, float]
    failures: dict[str, str]
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.name or 'module'}: not measured: {self.note}"
        parts = [f"{name} {time * 1e3:.3g} ms" for name, time in self.seconds.items()]
        parts += [f"{name} failed ({reason})" for name, reason in self.failures.items()]
        return f"{self.name or 'module'}: {', '.join(parts)}"


@dataclass(frozen=True)
class Tuning:
    """The measurements of `tune`; printing it shows a line for each RNN.

    Attributes:
        calls: one for each RNN that was called.
    """

    calls: tuple[TunedCall, ...]

    def __str__(self) -> str:
        return "\n".join(str(call) for call in self.calls)

    __repr__ = __str__


def tune(module: nn.Module, *inputs: Any, rounds: int = 7) -> Tuning:
    """Time every backend that `auto` may choose on the calls that `module(*inputs)` makes.

    The result is stored on disk, in the directory of compiled kernels. It applies to this host, the
    configuration of the stack, and calls with similar numbers of steps and sequences (rounded up to
    the same powers of two). From then on `auto` takes the fastest backend that accepts a call, in
    this and other processes, and `explain` shows the times.

    Calls are timed as `module` makes them: in training or evaluation mode, with a backward pass if
    they need gradients. Neither `module` nor torch's random generators change.

    Args:
        module: an nn.RNN, a compiled one, or any module that contains some.
        *inputs: the arguments for `module`, as in real use.
        rounds: interleaved samples of each time, of which the median is used.

    Raises:
        TypeError: `module` is not a module, or `rounds` is not an int.
        ValueError: `module(*inputs)` calls no nn.RNN, or `rounds` is less than 1.
        Exception: the error of `module(*inputs)` itself.

    Example:
        >>> measured = tune(torch.nn.RNN(2, 3), torch.zeros(4, 1, 2), rounds=1)
        >>> "eager" in measured.calls[0].seconds
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(rounds, int):
        raise TypeError(f"rounds must be an int, got {type(rounds).__name__}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    calls: list[_Call] = []
    observe(module, inputs, lambda seen: calls.append(_Call(seen)))
    if not calls:
        raise ValueError("module(*inputs) calls no nn.RNN: there is nothing to tune")
    with torch.random.fork_rng():
        return Tuning(tuple(call.tune(rounds) for call in calls))


class _Call:
    """An observed call, with copies of its arguments."""

    def __init__(self, seen: Seen) -> None:
        self.name = seen.name
        self.rnn = copy_sharing_parameters(seen.module)
        forget_pre_hooks(self.rnn)
        call = lower(self.rnn, seen.input, seen.hx)
        self.spec, self.problem, self.special = call.spec, call.problem, call.special
        self.input, self.hx = _leaf(seen.input), _leaf(seen.hx)
        self.leaves = [
            tensor
            for tensor in (_data(self.input), *_states(self.hx), *call.weights)
            if tensor.requires_grad
        ]

    def tune(self, rounds: int) -> TunedCall:
        """Measure, and store the measurements."""
        if self.special is not None:
            note = f"torch's own operators run it: {self.special}"
            return TunedCall(self.name, self.problem, {}, {}, note)
        runs, failures = {}, {}
        for name, backend in backends().items():
            if not backend.automatic or verdict_for_auto(backend, self.spec, self.problem).reasons:
                continue
            run = self._run(backend)
            try:
                run()
            except Exception as error:  # noqa: BLE001 - a backend may fail in any way
                failures[name] = described(error)
            else:
                runs[name] = run
        times = interleave(runs, rounds=rounds)
        medians = sorted((timing.median, name) for name, timing in times.items())
        seconds = {name: median for median, name in medians}
        tuning_db.keep(self.spec, self.problem, seconds)
        return TunedCall(self.name, self.problem, seconds, failures)

    def _run(self, backend: Backend) -> Callable[[], object]:
        """The call on one backend, with its backward pass if gradients are needed."""
        module = compile_rnn(self.rnn, backend=backend)

        def forward() -> None:
            with torch.no_grad():
                module(self.input, self.hx)

        def both() -> None:
            with torch.enable_grad():
                found = module(self.input, self.hx)
                y, *h_n = found if type(found) is tuple else (found,)
                outputs = [_data(y), *(state for each in h_n for state in _states(each))]
                grads = [torch.ones_like(output) for output in outputs]
                torch.autograd.grad(outputs, self.leaves, grads)

        return both if self.problem.needs_grad else forward


def _data(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def _states(hx: Any) -> tuple[Tensor, ...]:
    """The states of a call; empty if none were given."""
    if hx is None:
        return ()
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _leaf(value: Any) -> Any:
    """A copy whose tensors are leaves, with the same requires_grad."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return PackedSequence(_leaf(value.data), *tuple(value)[1:])
    if isinstance(value, (tuple, list)):
        return type(value)(map(_leaf, value))
    return value.detach().clone().requires_grad_(value.requires_grad)
