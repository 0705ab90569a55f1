"""rnnjit's Apache TVM backend: CPU kernels written in TensorIR.

Importing it imports neither tvm nor llvmlite; the first call does.
"""

from rnnjit_tvm.backend import BACKEND, TvmBackend

__all__ = ["BACKEND", "TvmBackend"]
