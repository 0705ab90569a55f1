"""The Apache TVM backend: the layer by kernels written in TensorIR.

`run` is imported on first use, since it imports llvmlite; tvm is imported only to compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.backend import Shortcut, States
from rnnjit.cells import Cell
from rnnjit.runtime.compile_once import imported
from rnnjit.runtime.packages import lacking
from rnnjit_tvm.pointwise import OPERATIONS

#: The release of TVM whose TensorIR the kernels are written in; others have other builders.
_RELEASE = "0.27"
#: The release of llvmlite, which loads the object code.
_LOADER = "0.50"


class TvmBackend(Backend):
    """nn.RNN layers and others of Elman's form on the CPU, as TensorIR compiled by Apache TVM."""

    name = "tvm"
    priority = 60
    devices = ("cpu",)
    dtypes = (torch.float32, torch.float64)
    operations = frozenset(OPERATIONS)

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        return [
            *lacking("apache-tvm", "tvm", _RELEASE, "pip install 'rnnjit[tvm]'"),
            *lacking("llvmlite", "llvmlite", _LOADER),
        ]

    def why_not_cell(self, cell: Cell) -> list[str]:
        """Declines cells that are not Elman's, see `Cell.is_elman`."""
        reasons = []
        if len(cell.gates) > 1:
            reasons.append(f"the cell has {len(cell.gates)} gates: only one is supported")
        if len(cell.states) > 1:
            reasons.append(f"the cell has {len(cell.states)} states: only one is supported")
        if cell.parameters:
            names = ", ".join(cell.parameters)
            reasons.append(f"the cell has parameters ({names}): none are supported")
        if not (reasons or cell.is_elman):
            reasons.append(
                "the cell does not have the form h' = f(W_ih x + b_ih + W_hh h + b_hh), "
                "with a derivative of f that follows from h'"
            )
        return reasons

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines projections."""
        return ["projections (proj_size) are not supported"] if spec.proj_size else []

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One call of the forward kernel."""
        imported("rnnjit_tvm.run")
        from rnnjit_tvm import run

        return run.forward(layer, rows, x, hx, weights)

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
        """One call of the backward kernel."""
        imported("rnnjit_tvm.run")
        from rnnjit_tvm import run

        return run.backward(layer, rows, x, hx, weights, output.y, grad_y, grad_h_n, needs)

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """One call of the forward kernel per layer, with nothing but allocations around them."""
        if problem.needs_grad:
            return None
        imported("rnnjit_tvm.run")
        from rnnjit_tvm import run

        rows = Rows(problem.T, problem.B, problem.N)
        return run.shortcut(problem.dtype.itemsize, spec.layers, rows, y_shape)


BACKEND = TvmBackend()
