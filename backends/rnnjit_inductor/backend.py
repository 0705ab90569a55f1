"""The Inductor backend: the layer through chunks of steps that torch's own compiler compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.backend import Shortcut
from rnnjit.recurrence import layer_backward, layer_forward
from rnnjit.team import most_threads
from rnnjit_inductor.plan import Plan, plan
from rnnjit_inductor.steps import Steps
from rnnjit_inductor.toolchain import lacking, unsupported
from rnnjit_inductor.whole import whole_backward, whole_forward, whole_stack

if TYPE_CHECKING:
    from rnnjit.recurrence import Recurrence

Planner = Callable[[LayerSpec, Rows, torch.dtype, str, int, bool], Plan | None]
CELLS = ("tanh", "relu")


class InductorBackend(Backend):
    """nn.RNN layers on whatever Inductor serves, in every real floating-point dtype.

    Args:
        planned: chooses how a call is cut (see `rnnjit_inductor.plan.plan`).
    """

    name = "inductor"
    priority = 20

    def __init__(self, planned: Planner = plan) -> None:
        self._planned = planned

    def missing(self) -> list[str]:
        """Says if torch's compiler does not run on this Python."""
        return unsupported()

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines dtypes that are not real, unknown cells, and devices without a compiler."""
        reasons = []
        if not problem.dtype.is_floating_point:
            reasons.append(f"{problem.dtype} is not supported: only floating-point dtypes are")
        if spec.nonlinearity not in CELLS:
            reasons.append(
                f"cell {spec.nonlinearity!r} is not known: only {' and '.join(CELLS)} are"
            )
        return reasons or lacking(problem.device)

    def gives_way(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Wherever it was never timed."""
        if problem.device == "cpu":
            return []
        return [f"it has not been measured on {problem.device} devices"]

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One GEMM over all rows, then the recurrence; or torch's own operator (see `shortcut`)."""
        if self._is_whole(layer, rows, x.dtype, x.device.type, keep):
            return whole_forward(layer, rows, x, h0, weights)
        recurrence = self._recurrence(layer, rows, x, keep)
        return layer_forward(recurrence, layer, rows, x, h0, weights)

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: Tensor | None,
        needs: Needs,
    ) -> LayerGrads:
        """The recurrence, then one GEMM over all rows for each gradient; or torch's autograd."""
        if self._is_whole(layer, rows, x.dtype, x.device.type, True):
            return whole_backward(layer, rows, x, h0, weights, grad_y, grad_h_n, needs)
        recurrence = self._recurrence(layer, rows, x, True)
        return layer_backward(
            recurrence, layer, rows, x, h0, weights, output.y, grad_y, grad_h_n, needs
        )

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """Torch's own operator for a whole layer, where nothing is compiled for the call."""
        rows = Rows(problem.T, problem.B, problem.N)
        keep = problem.needs_grad
        if self._is_whole(spec.layer(0), rows, problem.dtype, problem.device, keep):
            return whole_stack(spec, rows, y_shape)
        return None

    def _is_whole(
        self, layer: LayerSpec, rows: Rows, dtype: torch.dtype, device: str, keep: bool
    ) -> bool:
        """Whether the call is dense and nothing is compiled for it."""
        if device != "cpu" or rows.batch_sizes is not None or not rows.N:
            return False
        return self._cut(layer, rows, dtype, device, keep) is None

    def _recurrence(self, layer: LayerSpec, rows: Rows, x: Tensor, keep: bool) -> Recurrence:
        cut = self._cut(layer, rows, x.dtype, x.device.type, keep)
        if cut is None:
            return Steps()
        from rnnjit_inductor.chunks import Chunks

        return Chunks(cut)

    def _cut(
        self, layer: LayerSpec, rows: Rows, dtype: torch.dtype, device: str, keep: bool
    ) -> Plan | None:
        threads = most_threads(torch.get_num_threads())
        return self._planned(layer, rows, dtype, device, threads, keep)


BACKEND = InductorBackend()
