"""What `rnnjit.explain` reports on a `Recurrent`: one report on the stack, or one on each layer."""

from __future__ import annotations

from typing import Any

from rnnjit.backend import Backend
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.choice import Verdict, verdict, verdicts, willing
from rnnjit.errors import CellError
from rnnjit.execution.all_states import why_not_recorded
from rnnjit.frontend.compiled_recurrent import LayerCall, lower_recurrent
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.reference import BACKEND as EAGER
from rnnjit.tools.reports import CallReport


def report_recurrent(
    name: str,
    kind: str,
    module: Recurrent,
    wanted: Backend | None,
    given: tuple[Any, ...],
    *,
    compiled: bool,
) -> tuple[CallReport, ...]:
    """The reports on a call.

    Args:
        name: path of the module.
        kind: its `repr`.
        module: the module, compiled or not.
        wanted: the backend that the user named, or None for "auto".
        given: the arguments of its `forward`: x, hx, reset, reset_to and return_states.
        compiled: whether the user's module is compiled.
    """
    loop = "the cell's own forward runs, step by step"
    if wanted is EAGER:
        note = f"backend {EAGER.name!r} was asked for by name: {loop}"
        return (CallReport(name, kind, None, "torch", note, ()),)
    try:
        found = lower_recurrent(module, *given)
    except CellError as error:
        note = f"rnnjit.compile raises, but for backend='eager': {error}"
        return (CallReport(name, kind, None, None, note, ()),)
    if isinstance(found, str):
        return (CallReport(name, kind, None, "torch", f"{loop}: {found}", ()),)
    return tuple(
        _report(name, kind, call, wanted, return_states=bool(given[4]), compiled=compiled)
        for call in found
    )


def _report(
    name: str,
    kind: str,
    call: LayerCall,
    wanted: Backend | None,
    *,
    return_states: bool,
    compiled: bool,
) -> CallReport:
    spec, problem = call.spec, call.problem
    asked: tuple[Verdict, ...]
    if wanted is not None:
        asked = (verdict(wanted, spec, problem),)
        backend = None if asked[0].reasons else wanted
    else:
        asked = tuple(verdicts(spec, problem))
        backend = next(willing(spec, problem), None)
    notes: list[str] = []
    if wanted is not None:
        asked_for = f"backend {wanted.name!r} was asked for by name"
        notes = [asked_for if backend else f"{asked_for} and declines: the call raises"]
    notes += call.notes
    if backend and (return_states or call.reads_states):
        reason = why_not_recorded(backend, spec, problem)
        notes += [f"plain torch operators run it, step by step: {reason}"] if reason else []
    name = name if call.layer is None else f"{name or 'module'}, layer {call.layer}"
    chosen = backend.name if backend else None
    seconds = tuning_db.recall(spec, problem)
    note = "; ".join(notes)
    if not compiled:
        note = f"eager now; once compiled: {note}".rstrip()
    return CallReport(name, kind, problem, chosen, note, asked, seconds)
