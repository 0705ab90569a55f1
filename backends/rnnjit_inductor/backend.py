"""The Inductor backend: layers as chunks of time steps, compiled by torch's own compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.backend import Shortcut, States, values_read
from rnnjit.codegen.deferral import why_torch
from rnnjit.ir import CellSpec
from rnnjit.recurrence import (
    Saved,
    layer_backward,
    layer_forward,
    why_not_cell,
    why_not_projected,
)
from rnnjit.reference import BACKEND as EAGER
from rnnjit.reference import has_operator
from rnnjit.runtime.openmp import most_threads
from rnnjit.single_step import has_primitive
from rnnjit_inductor.plan import Plan, plan
from rnnjit_inductor.pointwise import OPERATIONS
from rnnjit_inductor.steps import Steps
from rnnjit_inductor.toolchain import lacking, unsupported
from rnnjit_inductor.whole import was_whole, whole_backward, whole_forward

if TYPE_CHECKING:
    from rnnjit.recurrence import Recurrence

#: Steps of packed rows up to which chunks are no faster than torch's operator in training.
_FEW_PACKED = 32

Planner = Callable[[LayerSpec, Rows, torch.dtype, str, int, bool], Plan | None]


class InductorBackend(Backend):
    """Computes layers of cells, on every device that Inductor serves.

    Args:
        planned: chooses what is compiled for a call (see `rnnjit_inductor.plan.plan`).
    """

    name = "inductor"
    priority = 20
    devices = None
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (
        *(torch.float32, torch.float64),
        *(torch.bfloat16, torch.float16),
    )
    operations = OPERATIONS
    sizes_matter = False

    def __init__(self, planned: Planner = plan) -> None:
        self._planned = planned

    def missing(self) -> list[str]:
        """Says if torch's compiler does not run here, or lacks functions that are needed."""
        return unsupported()

    def why_not_cell(self, cell: CellSpec) -> list[str]:
        """Declines cells whose operand or output is not their first state."""
        return why_not_cell(cell)

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines some projections, and devices without a compiler."""
        reasons = why_not_projected(spec.cell) if spec.proj_size else []
        return reasons + lacking(problem.device)

    def defers(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Defers to torch's own layers where they are faster, and where it was not measured."""
        if problem.device != "cpu":
            return [f"it has not been measured on {problem.device} devices"]
        reasons, layer = why_torch(spec, problem), spec.layer(0)
        twice = "it calls torch's operator, and once more for the backward pass"
        stacked = spec.dropout > 0 and spec.num_layers > 1
        primitive = has_primitive(layer, problem.dtype) and problem.needs_grad
        if problem.packed and has_operator(layer):
            if primitive and problem.B == 1:
                reasons.append(twice)
            elif not problem.needs_grad or problem.T <= _FEW_PACKED:
                reasons.append("torch's operator is as fast on packed rows of this kind")
        elif primitive and stacked:
            reasons.append(f"with dropout between layers, {twice}")
        return reasons

    def compile_seconds(self, spec: RNNSpec, problem: Problem) -> float:
        """Ten seconds for each pass, unless nothing is compiled for the call."""
        sizes = None
        if problem.packed:
            sizes = torch.full((problem.T,), problem.B, dtype=torch.int64, device="cpu")
        rows, keep = Rows(problem.T, problem.B, problem.N, sizes), problem.needs_grad
        if self._cut(spec.layer(0), rows, problem.dtype, problem.device, keep) is None:
            return 0.0
        return 20.0 if keep else 10.0

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One GEMM over all rows, then the recurrence; or torch's own operator (see `shortcut`)."""
        if self._is_whole(layer, rows, x.dtype, x.device.type, keep):
            return whole_forward(layer, rows, x, hx, weights, keep)
        recurrence = self._recurrence(layer, rows, x, keep)
        return layer_forward(recurrence, layer, rows, x, hx, weights, keep)

    def backward_reads(
        self, layer: LayerSpec, rows: Rows, output: LayerOutput, needed: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """All inputs where torch's operator runs again, else what the recurrence reads."""
        if was_whole(layer, output):
            return (True,) * len(needed)
        return values_read(layer, rows.T > 1, needed)

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """The recurrence, then one GEMM over all rows for each gradient; or torch's autograd."""
        whole = was_whole(layer, output)
        if not output.saved:  # as in the graph of torch.compile, which holds y alone
            whole = self._is_whole(layer, rows, x.dtype, x.device.type, True)
            if Saved.count(layer):
                # Only a call of torch's operator saves nothing, or one without rows.
                whole = rows.N > 0
                output = output if whole else self.forward(layer, rows, x, hx, weights, True)
        if whole:
            return whole_backward(layer, rows, x, hx, weights, grad_y, grad_h_n, needs)
        recurrence = self._recurrence(layer, rows, x, True)
        return layer_backward(
            recurrence, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs
        )

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """They are among what the forward pass keeps."""
        return True

    def forward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """As `forward`, never by torch's own operator, which does not return them."""
        recurrence = self._recurrence(layer, rows, x, keep)
        return layer_forward(recurrence, layer, rows, x, hx, weights, keep, record=True)

    def backward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        grad_states: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """As `backward`, after `forward_states`."""
        if not output.saved and Saved.count(layer) >= len(hx):
            # As in the graph of torch.compile, which holds y and the states alone.
            output = self.forward_states(layer, rows, x, hx, weights, True)
        recurrence = self._recurrence(layer, rows, x, True)
        return layer_backward(
            *(recurrence, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs, grad_states)
        )

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """Torch's own operator for a whole stack, if nothing is compiled for the call."""
        rows, keep = Rows(problem.T, problem.B, problem.N), problem.needs_grad
        if self._is_whole(spec.layer(0), rows, problem.dtype, problem.device, keep):
            return EAGER.shortcut(spec, problem, y_shape)
        return None

    def _is_whole(
        self, layer: LayerSpec, rows: Rows, dtype: torch.dtype, device: str, keep: bool
    ) -> bool:
        """Whether torch's own operator computes the call, and nothing is compiled for it.

        Recorded calls of packed rows are computed step by step: a layer's backward pass would run
        torch's operator once more, where that of a dense stack is autograd's (see `shortcut`).
        """
        packed = rows.batch_sizes is not None
        if device != "cpu" or not rows.N or not has_operator(layer):
            return False
        if packed and keep and not (rows.B == 1 and has_primitive(layer, dtype)):
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
