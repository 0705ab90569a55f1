"""rnnjit's CPU backend: kernels written for numba around vector tiles in LLVM IR.

Importing it imports neither numba nor llvmlite; the first call does.
"""

from rnnjit_numba.backend import BACKEND, NumbaBackend

__all__ = ["BACKEND", "NumbaBackend"]
