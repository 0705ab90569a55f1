"""The Numba CUDA backend: layers by persistent kernels on torch's current stream.

`launch` and what it needs are imported on first use, since it imports numba-cuda.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.artifact import ArtifactError
from rnnjit.backend import Program, Runner, States, values_read
from rnnjit.ir import CellSpec
from rnnjit.recurrence import layer_backward, layer_forward, why_not_cell, why_not_projected
from rnnjit_cuda import availability, cudnn_heuristics
from rnnjit_cuda.cells import OPERATIONS
from rnnjit_cuda.elman import why_not_elman
from rnnjit_cuda.kernels import FAMILIES, DType, Family, Pass

if TYPE_CHECKING:
    from rnnjit.recurrence import Recurrence
    from rnnjit_cuda.launch import Launcher

DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class CudaBackend(Backend):
    """Layers on CUDA devices; one kernel per layer and pass if its weights fit on the chip.

    float32 and float64 are computed as such; bfloat16 and float16 with sums in float32.

    Attributes:
        families: the kernels that it chooses among (see `plan`).
    """

    name = "cuda"
    priority = 100
    devices = ("cuda",)
    dtypes = tuple(DTYPES)
    operations = OPERATIONS
    resets_in_kernel = True
    families: ClassVar[tuple[Family, ...]] = FAMILIES

    def missing(self) -> list[str]:
        """Names the packages, device and libraries that are missing."""
        return availability.missing()

    def why_not_cell(self, cell: CellSpec) -> list[str]:
        """Declines cells that the matrix products around the recurrence do not serve."""
        return why_not_cell(cell)

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines projections of outputs that the step reads, and GPUs before Ampere."""
        return self._device_reasons(problem.device_index) + _projection(spec)

    def defers(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Defers to cuDNN, through PyTorch's own layer, where that is as fast."""
        return cudnn_heuristics.reasons(spec, problem)

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One GEMM over all rows, then the recurrence."""
        recurrence = self._recurrence(layer, rows, x, "forward")
        return layer_forward(recurrence, layer, rows, x, hx, weights, keep)

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """True: the kernels write the states of all steps for the backward pass anyway."""
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
        """As `forward`."""
        recurrence = self._recurrence(layer, rows, x, "forward")
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
        """As `backward`."""
        recorded = any(grad is not None for grad in grad_states)
        recurrence = self._recurrence(layer, rows, x, "backward", recorded=recorded)
        given = layer, rows, x, hx, weights, output, grad_y, grad_h_n
        return layer_backward(recurrence, *given, needs, grad_states)

    def backward_reads(
        self, layer: LayerSpec, rows: Rows, output: LayerOutput, needed: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """See `rnnjit.backend.values_read`."""
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
        """The recurrence, then one GEMM over all rows for each gradient."""
        recurrence = self._recurrence(layer, rows, x, "backward")
        return layer_backward(
            recurrence, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs
        )

    def targets(self) -> Sequence[str]:
        """CUDA source, which needs neither a GPU nor a CUDA compiler here."""
        return ("cuda",)

    def why_not_build(self, cell: CellSpec) -> list[str]:
        """Programs have the kernels of nn.RNN's cell alone."""
        return why_not_elman(cell)

    def build(self, spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
        """CUDA C++ source and a header.

        Raises:
            ValueError: the source does not support such a stack.
        """
        from rnnjit_cuda import artifact

        if reasons := _not_in_source(spec):
            raise ValueError(f"target {target!r} cannot compute these layers: {'; '.join(reasons)}")
        return artifact.build(spec, dtype, name)

    def load(self, program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
        """Refuses: source has to be compiled and linked first."""
        raise ArtifactError(
            f"the artifact holds CUDA source, {name}.cu: compile it with nvcc into your program"
        )

    def _launcher(self, x: Tensor) -> Launcher:
        from rnnjit_cuda.launch import driver_launcher

        return driver_launcher(x.get_device())

    def _recurrence(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        pass_: Pass,
        *,
        recorded: bool = False,
    ) -> Recurrence:
        from rnnjit_cuda.executor import recurrence

        given = layer, rows, DTYPES[x.dtype], pass_, self._launcher(x), self.families
        return recurrence(*given, recorded=recorded)

    def _device_reasons(self, index: int) -> list[str]:
        found = torch.cuda.get_device_properties(None if index < 0 else index)
        return availability.too_old(found.name, (found.major, found.minor))


def _not_in_source(spec: RNNSpec) -> list[str]:
    """Why the CUDA source cannot compute a stack; empty if it can."""
    reasons = []
    if not spec.cell.is_elman:
        reasons.append(f"cell {spec.cell.name!r} is not an Elman cell")
    if spec.proj_size:
        reasons.append(f"proj_size is {spec.proj_size}, not 0")
    return reasons


def _projection(spec: RNNSpec) -> list[str]:
    if not spec.proj_size:
        return []
    if spec.cell.is_elman:
        # Their y takes the place of z, which has other columns here.
        return [f"proj_size is {spec.proj_size}: not supported for Elman cells"]
    return why_not_projected(spec.cell)


BACKEND = CudaBackend()
