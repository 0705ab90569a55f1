"""`rnnjit.tune`: times the backends on a user's own calls, and has `auto` choose by that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit import tuned
from rnnjit.backend import Backend
from rnnjit.bench.timing import interleave
from rnnjit.calls import problem_of
from rnnjit.capture import capture, weights_of
from rnnjit.dispatch import special_context, verdict_for_auto
from rnnjit.errors import described
from rnnjit.inputs import prepare
from rnnjit.observe import Seen, observe
from rnnjit.registry import backends
from rnnjit.rnncell import as_sequence
from rnnjit.spec import Problem, RNNSpec
from rnnjit.swap import compile as compile_rnn
from rnnjit.swap import copy_sharing_parameters


@dataclass(frozen=True)
class TunedCall:
    """What was measured for one RNN inside a module.

    Attributes:
        name: path of the RNN in the module, "" for the module itself.
        problem: the facts of the call.
        seconds: median time of one call by backend, the fastest first; with its backward pass where
            gradients are needed.
        failures: what went wrong with a backend that accepted the call, by its name.
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
    """What `tune` measured; printing it shows a line for each RNN.

    Attributes:
        calls: one for each RNN that was called.
    """

    calls: tuple[TunedCall, ...]

    def __str__(self) -> str:
        return "\n".join(str(call) for call in self.calls)

    __repr__ = __str__


def tune(module: nn.Module, *inputs: Any, rounds: int = 7) -> Tuning:
    """Time every backend that `auto` may choose on the calls that `module(*inputs)` makes.

    The result is kept on disk, beside compiled kernels, for this host, the stack, and calls with a
    similar number of steps and sequences (up to the same power of two). From then on `auto` takes
    the fastest that accepts a call, in this process and others, and `explain` shows the times.

    Calls are timed as they are made: in training or evaluation mode, with a backward pass if
    gradients are needed there. Nothing of `module` changes, torch's random generators included.

    Args:
        module: an nn.RNN, a compiled one, or any module that contains some.
        *inputs: what the module is called with, as in real use.
        rounds: samples of each time, taken in turns; the median counts.

    Raises:
        TypeError: `module` is no module, or `rounds` no int.
        ValueError: `module(*inputs)` calls no nn.RNN, or `rounds` is less than 1.
        Exception: whatever `module(*inputs)` itself raises.

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
    """A call that was seen, with copies of what it was given."""

    def __init__(self, seen: Seen) -> None:
        self.name = seen.name
        self.rnn = copy_sharing_parameters(seen.module)
        self.rnn._forward_pre_hooks.clear()
        spec, weights = capture(self.rnn), weights_of(self.rnn)
        given = (seen.input, seen.hx)
        if isinstance(self.rnn, nn.RNNCellBase):
            given = as_sequence(*given)
        prepared = prepare(spec, weights[0], *given)
        h0 = prepared.x.new_zeros(()) if prepared.h0 is None else prepared.h0
        self.spec: RNNSpec = spec
        self.problem = problem_of(prepared, h0, weights)
        self.special = special_context(prepared.x, h0, *weights)
        self.input, self.hx = _leaf(seen.input), None if seen.hx is None else _leaf(seen.hx)
        self.leaves = [
            tensor
            for tensor in (_data(self.input), self.hx, *weights)
            if tensor is not None and tensor.requires_grad
        ]

    def tune(self, rounds: int) -> TunedCall:
        """Measure, and keep what was measured."""
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
        tuned.keep(self.spec, self.problem, seconds)
        return TunedCall(self.name, self.problem, seconds, failures)

    def _run(self, backend: Backend) -> Callable[[], object]:
        """The call by one backend, forward or both ways."""
        module = compile_rnn(self.rnn, backend=backend)

        def forward() -> None:
            with torch.no_grad():
                module(self.input, self.hx)

        def both() -> None:
            with torch.enable_grad():
                found = module(self.input, self.hx)
                outputs = [_data(each) for each in (found if isinstance(found, tuple) else [found])]
                grads = [torch.ones_like(output) for output in outputs]
                torch.autograd.grad(outputs, self.leaves, grads)

        return both if self.problem.needs_grad else forward


def _data(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def _leaf(value: Any) -> Any:
    """A copy that is a leaf of its own, and requires a gradient if the value does."""
    if isinstance(value, PackedSequence):
        return PackedSequence(_leaf(value.data), *tuple(value)[1:])
    return value.detach().clone().requires_grad_(value.requires_grad)
