"""The Numba CUDA backend of rnnjit."""

from rnnjit_cuda.backend import BACKEND, CudaBackend

__all__ = ["BACKEND", "CudaBackend"]
