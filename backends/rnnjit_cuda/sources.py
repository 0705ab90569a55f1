"""From a kernel's name to its Python source, built for its dtype, cell and size."""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnjit_cuda import block_kernel, grid_kernel, register_kernel, step_kernel
from rnnjit_cuda.cells import pointwise
from rnnjit_cuda.kernels import Family, KernelKey, most_threads, variants
from rnnjit_cuda.primitives import element, inlined, library

_MODULES: dict[Family, Any] = {
    "register": register_kernel,
    "block": block_kernel,
    "grid": grid_kernel,
    "stream": grid_kernel,
    "step": step_kernel,
}


class Source(NamedTuple):
    """A kernel that is ready to be compiled.

    Attributes:
        function: plain Python, which the simulator runs too.
        signature: numba types of its arguments.
        most_threads: the most threads of a block that it will be launched with.
    """

    function: Any
    signature: tuple[Any, ...]
    most_threads: int


def source(key: KernelKey) -> Source:
    """Build a kernel.

    Raises:
        ValueError: there is no such kernel.
    """
    if not key.cell.is_elman or key not in variants([key.cell]):
        raise ValueError(f"there is no kernel {key}: see rnnjit_cuda.kernels.variants()")
    module = _MODULES[key.family]
    numbers = element(key.dtype)
    make = module.forward if key.pass_ == "forward" else module.backward
    more = {"resident": False} if key.family == "stream" else {}
    cell = pointwise(key.cell, numbers.real, library, inlined)
    function, signature = make(numbers, cell, key.reach or key.rows, **more)
    return Source(function, signature, most_threads(key))
