"""The Apache TVM backend: the layer by kernels written in TensorIR.

`run` is imported on first use, since it imports llvmlite; tvm is imported only to compile.
"""

from __future__ import annotations

from rnnjit import Problem, RNNSpec
from rnnjit.cells import Cell
from rnnjit.codegen.backend import CPUBackend
from rnnjit.codegen.elman import why_not_elman
from rnnjit.runtime.packages import install, lacking

#: The release of TVM whose TensorIR the kernels are written in; others have other builders.
RELEASES = ">=0.27,<0.28"
#: The releases of llvmlite, which loads the object code.
LOADERS = ">=0.45,<0.51"


class TvmBackend(CPUBackend):
    """Layers of one gate and one state on the CPU, as TensorIR compiled by Apache TVM."""

    name = "tvm"
    priority = 60
    run_module = "rnnjit_tvm.run"

    def missing(self) -> list[str]:
        """Names what has to be installed."""
        return [
            *lacking("apache-tvm", "tvm", RELEASES, install("tvm")),
            *lacking("llvmlite", "llvmlite", LOADERS, f"pip install 'llvmlite{LOADERS}'"),
        ]

    def why_not_cell(self, cell: Cell) -> list[str]:
        """Declines cells that do not have the form of nn.RNN's."""
        return why_not_elman(cell)

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Declines projections."""
        return ["projections (proj_size) are not supported"] if spec.proj_size else []


BACKEND = TvmBackend()
