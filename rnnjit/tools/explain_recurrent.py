"""What `rnnjit.explain` reports on users' cells: on a stack, on each layer, on an adapted loop."""

from __future__ import annotations

from typing import Any

from rnnjit.backend import Backend
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.choice import Verdict, verdict, verdicts, willing
from rnnjit.errors import CellError
from rnnjit.execution.all_states import why_not_recorded
from rnnjit.frontend.adapted import Adapted
from rnnjit.frontend.capture import is_quantized
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.recurrent_lowering import LayerCall, lower_recurrent
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
    if wanted is EAGER and not is_quantized(module):
        note = f"backend {EAGER.name!r} was asked for by name: {loop}"
        return (CallReport(name, kind, None, "torch", note, ()),)
    try:
        found = lower_recurrent(module, *given, wanted=wanted)
    except CellError as error:
        note = f"rnnjit.compile raises, but for backend='eager': {error}"
        return (CallReport(name, kind, None, None, note, ()),)
    if isinstance(found, str):
        return (CallReport(name, kind, None, "torch", f"{loop}: {found}", ()),)
    return tuple(
        _report(name, kind, call, wanted, return_states=bool(given[4]), compiled=compiled)
        for call in found
    )


def report_adapted(
    name: str, module: Adapted, wanted: Backend | None, args: Any, kwargs: Any
) -> CallReport:
    """The report on a call of a module whose loop `rnnjit.adapt` describes.

    Args:
        name: path of the module.
        module: the module.
        wanted: the backend that the user named, or None for "auto".
        args: the arguments of its `forward`.
        kwargs: its keyword arguments.
    """
    kind, step = type(module).__name__, module._adaptation.step
    if wanted is EAGER:
        note = f"backend {EAGER.name!r} was asked for by name: its own loop runs"
        return CallReport(name, kind, None, "torch", note, ())
    found = module._taken(args, kwargs)
    if found is None:
        note = (
            "its own loop runs: compiled are calls with x [T, B, I] or [B, T, I] and at most the "
            "states [B, H], of plain tensors outside of transforms and autocast"
        )
        return CallReport(name, kind, None, "torch", note, ())
    try:
        call = module._lowered(*found)
    except CellError as error:
        return CallReport(name, kind, None, None, f"the call raises: {error}", ())
    note = f"the loop over its {step} is compiled, as rnnjit.adapt describes it"
    call = call._replace(notes=(note, *call.notes))
    return _report(name, kind, call, wanted, return_states=False, compiled=True)


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
