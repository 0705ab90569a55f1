"""The report on one call, a part of what `rnnjit.explain` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rnnjit.backend import Backend
from rnnjit.dispatch.choice import Verdict
from rnnjit.spec import Problem


@dataclass(frozen=True)
class CallReport:
    """How one RNN inside a module runs the call that it gets.

    Attributes:
        name: path of the RNN in the module, "" for the module itself.
        kind: its `repr`, such as `RNN(8, 16)`.
        problem: the properties of the call, or None if the RNN was never called.
        chosen: name of the backend that runs it; "torch" if it runs on torch's own operators for
            any backend; None if no backend runs it.
        note: the reason, if the verdicts do not give it.
        verdicts: each backend's answer, in the order in which they are asked.
        seconds: seconds by backend that `rnnjit.tune` measured for such calls; may be empty.
    """

    name: str
    kind: str
    problem: Problem | None
    chosen: str | None
    note: str
    verdicts: tuple[Verdict, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"{self.name or 'module'}: {self.kind}"
        lines = [head + (f" -> {self.chosen}" if self.chosen else "")]
        if self.note:
            lines.append(f"  {self.note}")
        if self.problem is not None:
            lines.append(f"  call: {_describe(self.problem)}")
        for backend, reasons, defers in self.verdicts:
            if backend.name == self.chosen:
                answer = "runs it"
            elif reasons:
                answer = "declines: " + "; ".join(reasons)
            else:
                answer = "could run it" + ("" if backend.automatic else ", asked for by name")
                if defers:
                    answer += f", but defers: {'; '.join(defers)}"
            if backend.name in self.seconds:
                took = f"{self.seconds[backend.name] * 1e3:.3g} ms"
                answer += f" (measured: {took}{self._close(backend)})"
            lines.append(f"  {backend.name}: {answer}")
        return "\n".join(lines)

    def _close(self, backend: Backend) -> str:
        """Why a backend that was measured to be faster than the chosen one is not chosen."""
        own = self.seconds.get(self.chosen or "", 0.0)
        accepts = any(each.backend is backend and not each.reasons for each in self.verdicts)
        faster = self.seconds[backend.name] < own
        return ", too close to be preferred" if accepts and faster else ""


def _describe(problem: Problem) -> str:
    form = f"packed, {problem.N} rows" if problem.packed else "dense"
    grad = "with gradients" if problem.needs_grad else "no gradients"
    return f"{problem.dtype} on {problem.device}, T={problem.T}, B={problem.B}, {form}, {grad}"
