"""`rnnjit.explain`: which backend runs a call, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rnnjit.backend import Backend
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.choice import verdict, verdicts, willing
from rnnjit.execution.all_states import why_not_recorded
from rnnjit.execution.recompute import recomputing
from rnnjit.frontend.autocast import backend_under_autocast, problem_under_autocast
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.lowering import Call, lower
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.reset_layers import CUT
from rnnjit.tools.explain_model import RecurrentModule, lacks, recurrent_modules, report_model
from rnnjit.tools.explain_recurrent import report_adapted, report_recurrent
from rnnjit.tools.explain_resets import report_resets
from rnnjit.tools.observe import Seen, observe
from rnnjit.tools.reports import CallReport


@dataclass(frozen=True)
class Explanation:
    """The reports on all RNNs in a module; printing it shows them.

    Attributes:
        calls: one report for each recurrent module, in the order of `named_modules`; one for each
            layer of a `Recurrent` whose layers do not form a stack.
        summary: without inputs, which modules are compiled, and which are not and why; else "".
    """

    calls: tuple[CallReport, ...]
    summary: str = ""

    def __str__(self) -> str:
        if self.summary:
            lines = (f"{call.name or 'module'}: {call.kind}: {call.note}" for call in self.calls)
            return "\n".join([self.summary, *lines])
        return "\n".join(str(call) for call in self.calls)

    __repr__ = __str__


def explain(module: nn.Module, *inputs: Any, **named: Any) -> Explanation:
    """Report, for every layer and cell in `module`, which backend runs `module(*inputs)` and why.

    For a module that is not compiled, the report says what `rnnjit.compile(module)` would do. A
    copy of the module runs once, on torch's own layers, so that neither the module nor torch's
    random generators change.

    Without inputs nothing runs. The report then says in one line which recurrent modules are
    compiled or would be, and which are left as they are, and has a line for each: the backends
    that may run it, or why it is left. It lists modules that `rnnjit.compile` leaves alone, too:
    those of TorchScript, quantized ones, and loops over a step.

    Args:
        module: an nn.RNN, nn.LSTM, nn.GRU or one of their cells, an `rnnjit.Recurrent`, a compiled
            one, or any module that contains some.
        *inputs: the arguments for `module`; none for a report on the model alone.
        **named: its keyword arguments, such as `reset`. With resets the report is on the packed
            batch of the segments between them, or on layers whose kernels reset the states.

    Raises:
        TypeError: `module` is not a module.
        Exception: the error of `module(*inputs)` itself.

    Example:
        >>> import rnnjit, torch
        >>> lstm = rnnjit.compile(torch.nn.LSTM(2, 3), backend="eager")
        >>> print(explain(lstm, torch.zeros(4, 1, 2)))
        module: LSTM(2, 3) -> eager
          backend 'eager' was asked for by name
          call: torch.float32 on cpu, T=4, B=1, dense, with gradients
          eager: runs it
        >>> print(explain(torch.nn.Sequential(lstm, torch.nn.Linear(3, 1))))
        1 of 1 recurrent module is compiled: 0
        0: LSTM(2, 3): compiled for backend 'eager'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not inputs and not named:
        return Explanation(*report_model(module))
    called = _record_calls(module, inputs, named)
    reports: list[CallReport] = []
    for found in recurrent_modules(module):
        reports += called.get(found.name) or [_report_uncalled(found)]
    if not reports:
        kind = type(module).__name__
        return Explanation((CallReport("", kind, None, None, "contains no RNN", ()),))
    return Explanation(tuple(reports))


def _record_calls(
    module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, tuple[CallReport, ...]]:
    """Report on the first call to each RNN in a call of `module`, at the point of the call."""
    reports: dict[str, tuple[CallReport, ...]] = {}
    cut: set[str] = set()

    def record(seen: Seen) -> None:
        if isinstance(seen.module, Recurrent):
            given = seen.input, seen.hx, seen.reset, seen.reset_to, seen.return_states
            compiled = isinstance(seen.module, CompiledBase)
            reports[seen.name] = report_recurrent(
                *(seen.name, seen.kind, seen.module, seen.wanted, given), compiled=compiled
            )
        else:
            reports[seen.name] = (_report_call(seen, cut=seen.name in cut),)

    def record_resets(seen: Seen) -> bool:
        reports[seen.name] = report_resets(seen)
        if not reports[seen.name]:
            cut.add(seen.name)
        return bool(reports[seen.name])

    def record_adapted(name: str, *call: Any) -> None:
        reports[name] = (report_adapted(name, *call),)

    observe(module, inputs, record, named, record_adapted, record_resets)
    return reports


def _report_uncalled(found: RecurrentModule) -> CallReport:
    if note := found.left or found.loop:
        return CallReport(found.name, found.kind, None, None, note, ())
    note = "no call was seen; what each backend lacks, on this machine and for such a module:"
    return CallReport(found.name, found.kind, None, None, note, lacks(found.cell))


def _report_call(seen: Seen, *, cut: bool) -> CallReport:
    """The report on a call; `cut` if it may be that of the segments between resets."""
    name, kind, module, wanted, x, hx, return_states, *_ = seen
    by_torch = "torch's own operators run it, whichever backend is asked for"
    if reason := overriding(module, x, hx):
        return CallReport(name, kind, None, "torch", f"{by_torch}: {reason}", ())
    call = lower(module, x, hx)
    spec, problem, special = call.spec, call.problem, call.special
    autocast = None if return_states else problem_under_autocast(call)
    if autocast is not None and backend_under_autocast(spec, autocast, wanted) is not None:
        problem, special = autocast, None
    asked = (verdict(wanted, spec, problem),) if wanted else tuple(verdicts(spec, problem))
    if special is not None:
        return CallReport(name, kind, problem, "torch", f"{by_torch}: {special}", ())
    if wanted is not None:
        backend = None if asked[0].reasons else wanted
    else:
        backend = next(willing(spec, problem), None)
    chosen = backend.name if backend else None
    note = "" if isinstance(module, CompiledBase) else "eager now; once compiled:"
    if wanted is not None:
        asked_for = f"backend {wanted.name!r} was asked for by name"
        note = asked_for if chosen else f"{asked_for} and declines: the call raises"
    if cut and problem.packed:
        note += f"{'; ' if note else ''}{CUT}"
    if special is None and call.special is not None:
        note += f"{'; ' if note else ''}autocast is enabled: it runs in {problem.dtype}"
    if return_states and backend and (reason := why_not_recorded(backend, spec, problem)):
        note += f"{'; ' if note else ''}plain torch operators run it, step by step: {reason}"
    elif backend and _recomputes(module, backend, call):
        note += f"{'; ' if note else ''}the backward pass recomputes the forward pass"
    return CallReport(name, kind, problem, chosen, note, asked, tuning_db.recall(spec, problem))


def _recomputes(module: nn.Module, backend: Backend, call: Call) -> bool:
    """Whether the backward pass of a module's call recomputes the forward pass."""
    asked = isinstance(module, CompiledBase) and module.recompute
    return asked and recomputing(backend, call.spec, call.problem) is not backend
