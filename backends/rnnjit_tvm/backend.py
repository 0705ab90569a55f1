"""The Apache TVM backend: the layer by kernels written in TensorIR.

`run` is imported on first use, since it imports llvmlite; tvm is imported only to compile.
"""

from __future__ import annotations

from rnnjit import Problem, RNNSpec
from rnnjit.codegen.backend import CPUBackend
from rnnjit.codegen.cell_layout import why_not_layout, why_not_projected
from rnnjit.ir import CellSpec
from rnnjit.runtime.packages import install, lacking

#: The release of TVM whose TensorIR the kernels are written in; others have other builders.
RELEASES = ">=0.27,<0.28"
#: The releases of llvmlite, which loads the object code.
LOADERS = ">=0.45,<0.51"


class TvmBackend(CPUBackend):
    """Layers of any cell in normal form, on the CPU, compiled by Apache TVM."""

    name = "tvm"
    priority = 60
    run_module = "rnnjit_tvm.run"

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        return [
            *lacking("apache-tvm", "tvm", RELEASES, install("tvm")),
            *lacking("llvmlite", "llvmlite", LOADERS, f"pip install 'llvmlite{LOADERS}'"),
        ]

    def why_not_cell(self, cell: CellSpec) -> list[str]:
        """Declines cells that are not in normal form."""
        return why_not_layout(cell)

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines some projections."""
        return why_not_projected(spec.cell) if spec.proj_size else []


BACKEND = TvmBackend()
