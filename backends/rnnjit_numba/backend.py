"""The Numba CPU backend: the layer by register-tiled kernels.

`run` is imported on first use, since it imports llvmlite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.backend import Program, Runner, Shortcut, Stepper
from rnnjit.once import imported
from rnnjit.release import lacking

#: What the kernels are written for: others lower them otherwise, if at all.
_RELEASES = {"numba": "0.68", "llvmlite": "0.50"}
_BITS = {torch.float32: 32, torch.float64: 64}


class NumbaBackend(Backend):
    """nn.RNN layers on the CPU, float32 and float64, one compiled call per layer and pass."""

    name = "numba"
    priority = 100

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        return [
            reason
            for package, release in _RELEASES.items()
            for reason in lacking(package, package, release)
        ]

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines other devices than the CPU, other dtypes and unknown cells."""
        reasons = []
        if problem.device != "cpu":
            reasons.append(f"the tensors are on {problem.device}: only cpu is supported")
        if problem.dtype not in _BITS:
            reasons.append(f"{problem.dtype} is not supported: only torch.float32 and float64 are")
        if spec.nonlinearity not in ("tanh", "relu"):
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
        imported("rnnjit_numba.run")
        from rnnjit_numba import run

        return run.forward(_BITS[x.dtype], layer, rows, x, h0, weights)

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
        imported("rnnjit_numba.run")
        from rnnjit_numba import run

        return run.backward(
            _BITS[x.dtype], layer, rows, x, h0, weights, output.y, grad_y, grad_h_n, needs
        )

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """One call of the forward kernel per layer, with nothing but allocations around them."""
        if problem.needs_grad:
            return None
        imported("rnnjit_numba.run")
        from rnnjit_numba import run

        rows = Rows(problem.T, problem.B, problem.N)
        return run.shortcut(_BITS[problem.dtype], spec.layers, rows, y_shape)

    def stepper(self, spec: RNNSpec, dtype: torch.dtype, batch: int) -> Stepper | None:
        """One call of the forward kernel per layer, over argument blocks that are kept."""
        imported("rnnjit_numba.streaming")
        from rnnjit_numba import streaming

        return streaming.stepper(dtype, spec.layers, batch)

    def targets(self) -> Sequence[str]:
        """Processors that LLVM generates code for; none where it cannot be imported."""
        if self.missing():
            return ()
        from rnnjit_numba.targets import NAMES

        return NAMES

    def build(self, spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
        """An object file with the forward kernel and a function that runs the whole stack by it."""
        from rnnjit_numba import artifact

        return artifact.build(spec, dtype, target, name)

    def load(self, program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
        """Links the object file into this process."""
        from rnnjit_numba import artifact

        return artifact.load(program, spec, dtype, name)


BACKEND = NumbaBackend()
