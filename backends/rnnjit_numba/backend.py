"""The Numba CPU backend: the layer by register-tiled kernels.

`run` is imported on first use, since it imports llvmlite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.backend import Program, Runner, Shortcut, States, Stepper
from rnnjit.cells import Cell
from rnnjit.codegen.elman import why_not_elman
from rnnjit.codegen.pointwise import OPERATIONS
from rnnjit.runtime.compile_once import imported
from rnnjit.runtime.packages import lacking
from rnnjit_numba import private


class NumbaBackend(Backend):
    """Layers of one gate and one state on the CPU, one compiled call per layer and pass."""

    name = "numba"
    priority = 100
    devices = ("cpu",)
    dtypes = (torch.float32, torch.float64)
    operations = OPERATIONS

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        found = [
            reason
            for package, release in private.RELEASES.items()
            for reason in lacking(package, package, release)
        ]
        return found or private.missing()

    def why_not_cell(self, cell: Cell) -> list[str]:
        """Declines cells of another form than nn.RNN's."""
        return why_not_elman(cell)

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
        imported("rnnjit_numba.run")
        from rnnjit_numba import run

        return run.forward(8 * x.element_size(), layer, rows, x, hx, weights)

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
        imported("rnnjit_numba.run")
        from rnnjit_numba import run

        bits, (grad_state,) = 8 * x.element_size(), grad_h_n
        return run.backward(bits, layer, rows, x, hx, weights, output.y, grad_y, grad_state, needs)

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """One call of the forward kernel per layer, with nothing but allocations around them."""
        if problem.needs_grad:
            return None
        imported("rnnjit_numba.run")
        from rnnjit_numba import run

        rows = Rows(problem.T, problem.B, problem.N)
        return run.shortcut(8 * problem.dtype.itemsize, spec.layers, rows, y_shape)

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
