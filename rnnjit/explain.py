"""`rnnjit.explain`: who runs a call, and why not the others."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnnjit.capture import capture, weights_of
from rnnjit.dispatch import Verdict, special_context, verdict, verdicts
from rnnjit.inputs import prepare
from rnnjit.module import CompiledRNN, problem_of
from rnnjit.registry import backends, resolve
from rnnjit.spec import Problem


@dataclass(frozen=True)
class CallReport:
    """What one RNN inside a module does with the call it gets.

    Attributes:
        name: path of the RNN in the module, "" for the module itself.
        kind: its representation, such as `RNN(8, 16)`.
        problem: the facts of the call, or None if it was never called.
        chosen: name of the backend that runs it, or None if none does.
        note: why it is so, where the verdicts do not say it.
        verdicts: each backend's answer, in the order in which they are asked.
    """

    name: str
    kind: str
    problem: Problem | None
    chosen: str | None
    note: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        head = f"{self.name or 'module'}: {self.kind}"
        lines = [head + (f" -> {self.chosen}" if self.chosen else "")]
        if self.note:
            lines.append(f"  {self.note}")
        if self.problem is not None:
            lines.append(f"  call: {_describe(self.problem)}")
        for backend, reasons in self.verdicts:
            if backend.name == self.chosen:
                answer = "runs"
            else:
                answer = "declines: " + "; ".join(reasons) if reasons else "could run"
            lines.append(f"  {backend.name}: {answer}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """The reports of all RNNs in a module; printing it shows them.

    Attributes:
        calls: one report for each recurrent module, in the order of `named_modules`.
    """

    calls: tuple[CallReport, ...]

    def __str__(self) -> str:
        return "\n".join(str(call) for call in self.calls)

    __repr__ = __str__


def explain(module: nn.Module, *inputs: Any) -> Explanation:
    """Say, for every RNN in `module`, which backend runs the call `module(*inputs)` and why.

    Works on a compiled module and on one that is not compiled yet (then it says what
    `rnnjit.compile(module)` would do). A copy of the module is run once, so that neither the module
    nor the random generators change. Without inputs it says what each backend lacks on this
    machine.

    Args:
        module: an nn.RNN, a compiled one, or any module that contains some.
        *inputs: what the module would be called with.

    Raises:
        TypeError: `module` is no module.

    Example:
        >>> import torch
        >>> print(explain(torch.nn.LSTM(2, 3)))
        module: LSTM(2, 3)
          left eager: only nn.RNN is compiled for now
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    calls = _record_calls(module, inputs) if inputs else {}
    reports = [
        _report(name, child, calls.get(name))
        for name, child in module.named_modules()
        if isinstance(child, (nn.RNNBase, nn.RNNCellBase))
    ]
    if not reports:
        return Explanation((CallReport("", type(module).__name__, None, None, "no RNN in it", ()),))
    return Explanation(tuple(reports))


def _record_calls(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """What each RNN is called with in `module(*inputs)`, by its name."""
    replica = copy.deepcopy(module)
    calls: dict[str, tuple[Any, ...]] = {}
    for name, child in replica.named_modules():
        if isinstance(child, nn.RNNBase):

            def record(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                calls.setdefault(name, _signature(*args, **kwargs))

            child.register_forward_pre_hook(record, with_kwargs=True)
        if isinstance(child, CompiledRNN):
            child.backend = "eager"
            child._choices = {}
    with torch.random.fork_rng():
        replica(*inputs)
    return calls


def _signature(input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - nn.RNN's own name
    return input, hx


def _report(name: str, module: nn.Module, call: tuple[Any, ...] | None) -> CallReport:
    kind = repr(module)
    if not isinstance(module, (nn.RNN, CompiledRNN)):
        return CallReport(name, kind, None, None, "left eager: only nn.RNN is compiled for now", ())
    if isinstance(module, nn.RNN) and type(module).forward is not nn.RNN.forward:
        return CallReport(name, kind, None, None, "left eager: it overrides forward", ())
    compiled = isinstance(module, CompiledRNN)
    wanted = resolve(module.backend) if isinstance(module, CompiledRNN) else None
    note = "" if compiled else "not compiled: this is what rnnjit.compile would do"
    if call is None:
        missing = tuple(Verdict(b, tuple(b.missing())) for b in backends().values())
        return CallReport(name, kind, None, None, note or "not called", missing)
    spec, weights = capture(module), weights_of(module)
    prepared = prepare(spec, weights[0].dtype, weights[0].device, *call)
    h0 = prepared.h0 if prepared.h0 is not None else prepared.x.new_zeros(())
    problem = problem_of(prepared, h0, weights)
    asked = (verdict(wanted, spec, problem),) if wanted else tuple(verdicts(spec, problem))
    special = special_context((prepared.x, h0, *weights))
    if special is not None:
        return CallReport(name, kind, problem, "torch", f"torch's own operators: {special}", asked)
    chosen = next((v.backend.name for v in asked if not v.reasons), None)
    if wanted is not None:
        asked_for = f"backend {wanted.name!r} was asked for by name"
        note = asked_for if chosen else f"{asked_for} and declines: the call raises"
    return CallReport(name, kind, problem, chosen, note, asked)


def _describe(problem: Problem) -> str:
    form = f"packed, {problem.N} rows" if problem.packed else "dense"
    grad = "with gradients" if problem.needs_grad else "no gradients"
    return f"{problem.dtype} on {problem.device}, T={problem.T}, B={problem.B}, {form}, {grad}"
