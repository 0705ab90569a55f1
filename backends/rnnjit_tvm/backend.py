"""The Apache TVM backend: the layer by kernels written in TensorIR.

`run` is imported on first use, since it imports llvmlite; tvm is imported only to compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.backend import Shortcut
from rnnjit.once import imported
from rnnjit.release import lacking

_DTYPES = (torch.float32, torch.float64)
_CELLS = ("tanh", "relu")
#: The release of TVM whose TensorIR the kernels are written in; others have other builders.
_RELEASE = "0.27"
#: The release of llvmlite, which loads the object code.
_LOADER = "0.50"


class TvmBackend(Backend):
    """nn.RNN layers on the CPU, float32 and float64, as TensorIR compiled by Apache TVM."""

    name = "tvm"
    priority = 60

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        return [
            *lacking("apache-tvm", "tvm", _RELEASE, "pip install 'rnnjit[tvm]'"),
            *lacking("llvmlite", "llvmlite", _LOADER),
        ]

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines other devices than the CPU, other dtypes and unknown cells."""
        reasons = []
        if problem.device != "cpu":
            reasons.append(f"the tensors are on {problem.device}: only cpu is supported")
        if problem.dtype not in _DTYPES:
            reasons.append(f"{problem.dtype} is not supported: only torch.float32 and float64 are")
        if spec.nonlinearity not in _CELLS:
            reasons.append(f"cell {spec.nonlinearity!r} is not known: only tanh and relu are")
        return reasons

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One call of the forward kernel."""
        imported("rnnjit_tvm.run")
        from rnnjit_tvm import run

        return run.forward(layer, rows, x, h0, weights)

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
        """One call of the backward kernel."""
        imported("rnnjit_tvm.run")
        from rnnjit_tvm import run

        return run.backward(layer, rows, x, h0, weights, output.y, grad_y, grad_h_n, needs)

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
