"""`rnnjit.explain`: which backend runs a call, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rnnjit.backend import Backend
from rnnjit.cells import Cell
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.choice import Verdict, verdict, verdicts, why_not_cell, willing
from rnnjit.dispatch.registry import backends, lacking
from rnnjit.errors import CellError
from rnnjit.execution.all_states import why_not_recorded
from rnnjit.execution.recompute import recomputing
from rnnjit.frontend.adapt import looks_like_a_loop
from rnnjit.frontend.adapted import Adapted
from rnnjit.frontend.capture import capture
from rnnjit.frontend.compile import why_left
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.lowering import Call, lower
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.reachable import reachable_modules
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.recurrent_plan import make_plan
from rnnjit.tools.explain_recurrent import report_recurrent
from rnnjit.tools.observe import Seen, kind_of, observe
from rnnjit.tools.reports import CallReport


@dataclass(frozen=True)
class Explanation:
    """The reports on all RNNs in a module; printing it shows them.

    Attributes:
        calls: one report for each recurrent module, in the order of `named_modules`; one for each
            layer of a `Recurrent` whose layers do not form a stack.
    """

    calls: tuple[CallReport, ...]

    def __str__(self) -> str:
        return "\n".join(str(call) for call in self.calls)

    __repr__ = __str__


def explain(module: nn.Module, *inputs: Any, **named: Any) -> Explanation:
    """Report, for every layer and cell in `module`, which backend runs `module(*inputs)` and why.

    For a module that is not compiled, the report says what `rnnjit.compile(module)` would do. A
    copy of the module runs once, on torch's own layers, so that neither the module nor torch's
    random generators change. Without inputs the report says what each backend lacks on this
    machine and for such a module.

    Args:
        module: an nn.RNN, nn.LSTM, nn.GRU or one of their cells, an `rnnjit.Recurrent`, a compiled
            one, or any module that contains some.
        *inputs: the arguments for `module`.
        **named: its keyword arguments, such as `reset`. With resets the report is on the packed
            batch of the segments between them.

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
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    called = _record_calls(module, inputs, named) if inputs or named else {}
    reports: list[CallReport] = []
    for name, child in reachable_modules(module):
        if isinstance(child, (nn.RNNBase, nn.RNNCellBase, Recurrent, Cell)):
            reports += called.get(name) or [_report_uncalled(name, child)]
        elif note := _note_on_loop(child):
            reports.append(CallReport(name, type(child).__name__, None, None, note, ()))
    if not reports:
        kind = type(module).__name__
        return Explanation((CallReport("", kind, None, None, "contains no RNN", ()),))
    return Explanation(tuple(reports))


def _note_on_loop(module: nn.Module) -> str:
    """What to say of a module whose `forward` is a loop of the user's; "" if it is none."""
    if isinstance(module, Adapted):
        step = module._adaptation.step
        return f"the loop over its {step} is compiled, as rnnjit.adapt describes it"
    if not (step := looks_like_a_loop(module)):
        return ""
    name = type(module).__name__
    return (
        f"left as it is: its forward seems to loop over its {step}; rnnjit.compile(model, "
        f"cells={{{name}: rnnjit.adapt({step!r}, ...)}}) compiles such loops"
    )


def _record_calls(
    module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, tuple[CallReport, ...]]:
    """Report on the first call to each RNN in a call of `module`, at the point of the call."""
    reports: dict[str, tuple[CallReport, ...]] = {}

    def record(seen: Seen) -> None:
        if isinstance(seen.module, Recurrent):
            given = seen.input, seen.hx, seen.reset, seen.reset_to, seen.return_states
            compiled = isinstance(seen.module, CompiledBase)
            reports[seen.name] = report_recurrent(
                *(seen.name, seen.kind, seen.module, seen.wanted, given), compiled=compiled
            )
        else:
            reports[seen.name] = (_report_call(seen),)

    observe(module, inputs, record, named, recurrent=True)
    return reports


def _report_uncalled(name: str, module: nn.Module) -> CallReport:
    left = why_left(module, None)
    if left:
        return CallReport(name, kind_of(module), None, None, left, ())
    if isinstance(module, Recurrent):
        try:
            cell = make_plan(module, module._store).layers[0].spec.cell
        except CellError as error:
            note = f"rnnjit.compile raises, but for backend='eager': {error}"
            return CallReport(name, kind_of(module), None, None, note, ())
    else:
        cell = capture(module).cell
    missing = tuple(
        Verdict(each, lacking(each) or tuple(why_not_cell(each, cell)))
        for each in backends().values()
    )
    note = "no call was seen; what each backend lacks, on this machine and for such a module:"
    return CallReport(name, kind_of(module), None, None, note, missing)


def _report_call(seen: Seen) -> CallReport:
    name, kind, module, wanted, x, hx, return_states, *_ = seen
    by_torch = "torch's own operators run it, whichever backend is asked for"
    if reason := overriding(module, x, hx):
        return CallReport(name, kind, None, "torch", f"{by_torch}: {reason}", ())
    call = lower(module, x, hx)
    spec, problem, special = call.spec, call.problem, call.special
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
    if return_states and backend and (reason := why_not_recorded(backend, spec, problem)):
        note += f"{'; ' if note else ''}plain torch operators run it, step by step: {reason}"
    elif backend and _recomputes(module, backend, call):
        note += f"{'; ' if note else ''}the backward pass recomputes the forward pass"
    return CallReport(name, kind, problem, chosen, note, asked, tuning_db.recall(spec, problem))


def _recomputes(module: nn.Module, backend: Backend, call: Call) -> bool:
    """Whether the backward pass of a module's call recomputes the forward pass."""
    asked = isinstance(module, CompiledBase) and module.recompute
    return asked and recomputing(backend, call.spec, call.problem) is not backend
