"""What `rnnjit.explain` says of a model without a call: what is compiled, what is not, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnnjit.cells import Cell
from rnnjit.dispatch.choice import Verdict, why_not_cell
from rnnjit.dispatch.registry import backends, lacking
from rnnjit.errors import CellError
from rnnjit.frontend.adapt import looks_like_a_loop
from rnnjit.frontend.adapted import Adapted
from rnnjit.frontend.capture import capture
from rnnjit.frontend.compile import why_left
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_class import replaced
from rnnjit.frontend.reachable import reachable_modules
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.recurrent_lowering import plan_of
from rnnjit.ir import CellSpec
from rnnjit.reference import BACKEND as EAGER
from rnnjit.tools.observe import kind_of, wanted_by
from rnnjit.tools.reports import CallReport

#: Names in a summary; each module has a line of its own.
_MOST_NAMES = 8
#: Operators of torch that compute recurrent layers and cells, in graphs of TorchScript.
_OPERATORS = tuple(
    f"aten::{name}{kind}"
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for kind in ("", "_cell")
)
#: Classes of torch.ao.nn that stand for recurrent layers and cells.
_QUANTIZED = ("RNNBase", "RNNCellBase", "LSTM", "LSTMCell")


@dataclass(frozen=True)
class RecurrentModule:
    """A recurrent module of a model.

    Attributes:
        name: its path, "" for the model itself.
        kind: its `repr`, such as `RNN(8, 16)`.
        module: the module.
        left: why `rnnjit.compile` leaves it as it is, "" if it does not.
        loop: (of a loop that `rnnjit.adapt` describes) that it is compiled; else "".
        cell: what it computes; None if it is left or a loop.
    """

    name: str
    kind: str
    module: nn.Module
    left: str = ""
    loop: str = ""
    cell: CellSpec | None = None

    @property
    def compiled(self) -> bool:
        """Whether it is compiled now."""
        return bool(self.loop) or (not self.left and isinstance(self.module, CompiledBase))


def report_model(module: nn.Module) -> tuple[tuple[CallReport, ...], str]:
    """The reports on the recurrent modules of a model, and a summary in one line."""
    found = list(recurrent_modules(module))
    reports = tuple(_report(each) for each in found)
    if found:
        return reports, _summary(found)
    count = sum(1 for _ in module.modules())
    of = "one module" if count == 1 else f"{count} modules"
    kinds = ", ".join(sorted(cls.__name__ for cls in replaced()))
    return (), f"no recurrent module: {type(module).__name__} has {of}, none of them one of {kinds}"


def recurrent_modules(module: nn.Module) -> Iterator[RecurrentModule]:
    """The recurrent modules of a model, those that cannot be compiled included."""
    inside: list[str] = []  # paths of modules whose parts are not reported
    for name, child in reachable_modules(module):
        if any(name.startswith(path) for path in inside):
            continue
        if isinstance(child, (nn.RNNBase, nn.RNNCellBase, Recurrent, Cell)):
            yield _torchs(name, child)
        elif note := _scripted(child) or _quantized(child):
            inside.append(f"{name}." if name else "")
            kind = getattr(child, "original_name", type(child).__name__)
            yield RecurrentModule(name, kind, child, left=f"left as it is: {note}")
        elif isinstance(child, Adapted):
            step = child._adaptation.step
            loop = f"the loop over its {step} is compiled, as rnnjit.adapt describes it"
            yield RecurrentModule(name, type(child).__name__, child, loop=loop)
        elif step := looks_like_a_loop(child):
            kind = type(child).__name__
            left = (
                f"left as it is: its forward seems to loop over its {step}; rnnjit.compile(model, "
                f"cells={{{kind}: rnnjit.adapt({step!r}, ...)}}) compiles such loops"
            )
            yield RecurrentModule(name, kind, child, left=left)


def lacks(cell: CellSpec | None) -> tuple[Verdict, ...]:
    """What each backend lacks on this machine and for layers of a cell."""
    if cell is None:
        return ()
    return tuple(
        Verdict(each, lacking(each) or tuple(why_not_cell(each, cell)))
        for each in backends().values()
    )


def _torchs(name: str, module: nn.Module) -> RecurrentModule:
    """A layer or cell of torch's or ours."""
    kind, cell = kind_of(module), None
    left = why_left(module, None)
    if not left and isinstance(module, Recurrent):
        try:
            cell = plan_of(module).layers[0].spec.cell
        except CellError as error:
            if wanted_by(module) is EAGER:
                return RecurrentModule(name, kind, module)
            left = f"rnnjit.compile raises, but for backend='eager': {error}"
    elif not left:
        cell = capture(module).cell
    return RecurrentModule(name, kind, module, left=left, cell=cell)


def _scripted(module: nn.Module) -> str:
    """Why a module of TorchScript is left as it is; "" for others and those without a layer."""
    if not isinstance(module, torch.jit.ScriptModule):
        return ""
    advice = "TorchScript runs it: compile the model that was scripted"
    if getattr(module, "original_name", "") in {cls.__name__ for cls in replaced()}:
        return advice
    if any(_scripted(child) for child in module.children()):
        return ""  # these are reported
    try:
        graph: Any = module.inlined_graph
    except (AttributeError, RuntimeError):  # it has no forward
        return ""
    called = [name for name in _OPERATORS if graph.findAllNodes(name)]
    return f"it calls {' and '.join(called)}, and {advice}" if called else ""


def _quantized(module: nn.Module) -> str:
    """Why a quantized module is left as it is; "" for others and those that are not recurrent."""
    for cls in type(module).__mro__:
        package = cls.__module__.partition(".modules.")[0]
        if package.startswith("torch.ao.nn.") and cls.__name__ in _QUANTIZED:
            return f"it is of {package}; rnnjit.compile takes dynamically quantized qint8 modules"
    return ""


def _report(found: RecurrentModule) -> CallReport:
    verdicts = lacks(found.cell)
    note = found.left or found.loop or _note(found, verdicts)
    return CallReport(found.name, found.kind, None, None, note, verdicts)


def _note(found: RecurrentModule, verdicts: Sequence[Verdict]) -> str:
    """Which backends may run a module."""
    wanted = wanted_by(found.module)
    if wanted is None:
        able = [
            each.backend.name for each in verdicts if not each.reasons and each.backend.automatic
        ]
        takes = f"auto takes the first of {_listed(able)} that accepts a call"
        return f"compiled: {takes}" if found.compiled else f"not compiled yet; then {takes}"
    reasons = lacking(wanted) or (() if found.cell is None else why_not_cell(wanted, found.cell))
    cannot = f", which cannot run it here: {'; '.join(reasons)}" if reasons else ""
    return f"compiled for backend {wanted.name!r}{cannot}"


def _summary(found: Sequence[RecurrentModule]) -> str:
    compiled = [each for each in found if each.compiled]
    waiting = [each for each in found if not each.compiled and not each.left]
    left: dict[str, list[RecurrentModule]] = {}
    for each in found:
        if each.left:
            why = re.sub("^left (eager|as it is): ", "", each.left)
            left.setdefault(why, []).append(each)
    modules = "recurrent module" if len(found) == 1 else "recurrent modules"
    are = "is" if 1 in (len(compiled), len(found)) else "are"
    which = f": {_names(compiled)}" if compiled else ""
    parts = [f"{len(compiled)} of {len(found)} {modules} {are} compiled{which}"]
    if waiting:
        parts.append(f"rnnjit.compile(model) would compile {_names(waiting)}")
    if left:
        reasons = ", ".join(f"{_names(modules)} ({why})" for why, modules in left.items())
        one = sum(map(len, left.values())) == 1
        parts.append(f"left as {'it is' if one else 'they are'}: {reasons}")
    return "; ".join(parts)


def _names(modules: Sequence[RecurrentModule]) -> str:
    names = [each.name or "module" for each in modules]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
