"""The Numba CUDA backend: the layer by persistent kernels on torch's current stream.

`launch` and what it needs are imported on first use, since it imports numba-cuda.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rnnjit import Backend, LayerGrads, LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.artifact import ArtifactError
from rnnjit.backend import Program, Runner
from rnnjit.recurrence import layer_backward, layer_forward
from rnnjit_cuda import availability, rival
from rnnjit_cuda.kernels import DType, Pass, Plan
from rnnjit_cuda.plan import PLANS

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
    """nn.RNN layers on CUDA devices; one kernel a layer and pass where its weights fit on the chip.

    float32 and float64 are computed as such; bfloat16 and float16 with sums in float32.

    Attributes:
        plans: the plans that it chooses among (see `plan`).
    """

    name = "cuda"
    priority = 100
    device = "cuda"
    plans: ClassVar[tuple[Plan, ...]] = PLANS

    def missing(self) -> list[str]:
        """Names packages, a device and libraries that are not there."""
        return availability.missing()

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines other devices, other dtypes, unknown cells and GPUs before Ampere."""
        reasons = []
        if problem.device != self.device:
            reasons.append(f"the tensors are on {problem.device}: only {self.device} is supported")
        if problem.dtype not in DTYPES:
            reasons.append(
                f"{problem.dtype} is not supported: only {', '.join(DTYPES.values())} are"
            )
        if spec.nonlinearity not in ("tanh", "relu"):
            reasons.append(f"cell {spec.nonlinearity!r} is not known: only tanh and relu are")
        return reasons or self._device_reasons(problem.device_index)

    def gives_way(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Where cuDNN, by PyTorch's own layer, is as quick."""
        return rival.reasons(spec, problem)

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One GEMM over all rows, then the recurrence."""
        recurrence = self._recurrence(layer, rows, x, "forward")
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
        """The recurrence, then one GEMM over all rows for each gradient."""
        recurrence = self._recurrence(layer, rows, x, "backward")
        return layer_backward(
            recurrence, layer, rows, x, h0, weights, output.y, grad_y, grad_h_n, needs
        )

    def targets(self) -> Sequence[str]:
        """CUDA source, for which neither a GPU nor a compiler of it is needed here."""
        return ("cuda",)

    def build(self, spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
        """CUDA C++ source and a header."""
        from rnnjit_cuda import artifact

        return artifact.build(spec, dtype, name)

    def load(self, program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
        """Refuses: source has to be compiled and linked first."""
        raise ArtifactError(
            f"the artifact holds CUDA source, {name}.cu: compile it with nvcc into your program"
        )

    def _launcher(self, x: Tensor) -> Launcher:
        from rnnjit_cuda.launch import driver_launcher

        return driver_launcher(x.get_device())

    def _recurrence(self, layer: LayerSpec, rows: Rows, x: Tensor, pass_: Pass) -> Recurrence:
        from rnnjit_cuda.planned import recurrence

        dtype = DTYPES[x.dtype]
        return recurrence(layer, rows, dtype, pass_, self._launcher(x), self.plans)

    def _device_reasons(self, index: int) -> list[str]:
        found = torch.cuda.get_device_properties(None if index < 0 else index)
        return availability.too_old(found.name, (found.major, found.minor))


BACKEND = CudaBackend()
