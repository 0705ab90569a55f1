"""The Numba CPU backend: the layer by register-tiled kernels.

Modules that import llvmlite are imported on first use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rnnjit import Problem, RNNSpec
from rnnjit.backend import Program, Runner, Stepper
from rnnjit.codegen.backend import CPUBackend
from rnnjit.codegen.cell_layout import why_not_layout, why_not_projected
from rnnjit.ir import CellSpec
from rnnjit.runtime.compile_once import imported
from rnnjit.runtime.packages import lacking, needed
from rnnjit_numba import private

_NO_FLOAT16_TRAINING = (
    "float16 is for inference, under torch.no_grad(): train in bfloat16 or float32"
)


class NumbaBackend(CPUBackend):
    """Layers on the CPU, by kernels that numba lowers to LLVM IR."""

    name = "numba"
    priority = 100
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    under_autocast = True
    quantized = True
    run_module = "rnnjit_numba.run"

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        # Each release of numba goes with one of llvmlite.
        fitting = needed("llvmlite", of="numba") or private.RELEASES["llvmlite"]
        found = [
            *lacking("numba", "numba", private.RELEASES["numba"], private.INSTALL),
            *lacking("llvmlite", "llvmlite", fitting, private.INSTALL),
        ]
        return found or private.missing()

    def why_not_cell(self, cell: CellSpec) -> list[str]:
        """Declines cells that are not in normal form."""
        return why_not_layout(cell)

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines some projections, training in float16, and rows too long for int8 products."""
        reasons = why_not_projected(spec.cell) if spec.proj_size else []
        if problem.dtype is torch.float16 and problem.needs_grad:
            reasons.append(_NO_FLOAT16_TRAINING)
        if spec.quantized:
            from rnnjit_numba.int8_plan import why_not_long

            reasons += why_not_long(spec)
        return reasons

    def stepper(self, spec: RNNSpec, dtype: torch.dtype, batch: int) -> Stepper | None:
        """One call of the forward kernel per layer, over argument blocks that are kept.

        None for cells with row inputs, as for `shortcut`.
        """
        if spec.cell.row_inputs:
            return None
        imported("rnnjit_numba.streaming")
        from rnnjit_numba import streaming

        return streaming.stepper(dtype, spec.layers, batch)

    def choices(self) -> dict[str, str]:
        """The register tiles of every element type, and how bfloat16 and int8 are multiplied."""
        imported("rnnjit_numba.tile_choice")
        from rnnjit.codegen.host import host_isa
        from rnnjit_numba import tile_choice
        from rnnjit_numba.int8_plan import multiplies_bytes

        found = {
            f"tiles of {str(dtype).removeprefix('torch.')}": tile_choice.described(dtype)
            for dtype in self.dtypes
        }
        isa = host_isa()
        dot = multiplies_bytes(isa)
        by_bytes = "one instruction for four numbers (vpdpbusd)" if dot else "widened to 16 bits"
        return found | {
            "products of bfloat16": _products_of_bfloat16(),
            "products of int8": by_bytes,
        }

    def targets(self) -> Sequence[str]:
        """Processors that LLVM generates code for; none where it cannot be imported."""
        if self.missing():
            return ()
        from rnnjit_numba.targets import NAMES

        return NAMES

    def why_not_build(self, cell: CellSpec) -> list[str]:
        """Programs have no place for a cell's parameters and row inputs."""
        reasons = []
        if cell.parameters:
            names = ", ".join(cell.parameters)
            reasons.append(f"the cell has parameters ({names}): programs support none")
        if cell.row_inputs:
            names = ", ".join(cell.row_inputs)
            reasons.append(f"the cell has row inputs ({names}): programs support none")
        if not cell.has_product:
            reasons.append("the cell has no recurrent product: programs need one")
        return reasons

    def build(self, spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
        """An object file with the forward kernel and a function that runs the whole stack by it."""
        from rnnjit_numba import artifact

        return artifact.build(spec, dtype, target, name)

    def load(self, program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
        """Links the object file into this process."""
        from rnnjit_numba import artifact

        return artifact.load(program, spec, dtype, name)


def _products_of_bfloat16() -> str:
    """How products of bfloat16 are computed here, and why not by tile registers that are there."""
    from rnnjit_numba import amx_check
    from rnnjit_numba.storage import multiplies_pairs

    isa = amx_check.kernel_isa(torch.bfloat16)
    if isa.amx:
        own = "emulated" if isa.amx == "emulated" else "amx-bf16"
        return f"one instruction for a block of 16x16x32 ({own})"
    pairs = multiplies_pairs(isa.features, wide=isa.vector_bytes == 64)
    how = "one instruction for a pair (avx512bf16)" if pairs else "a multiply-add for each"
    reason = amx_check.why_no_tiles()
    return f"{how}; not by AMX: {reason}" if reason else how


BACKEND = NumbaBackend()
