"""From a kernel's name to its Python source, built for its dtype, cell and size."""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnjit_cuda import block, grid, register, step
from rnnjit_cuda.cells import CELLS
from rnnjit_cuda.kernels import KernelKey, Plan, most_threads, variants
from rnnjit_cuda.primitives import element

_HOMES: dict[Plan, Any] = {
    "register": register,
    "block": block,
    "grid": grid,
    "stream": grid,
    "step": step,
}


class Source(NamedTuple):
    """A kernel, ready to be compiled.

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
    if key not in variants():
        raise ValueError(f"there is no kernel {key}: see rnnjit_cuda.kernels.variants()")
    module = _HOMES[key.plan]
    numbers = element(key.dtype)
    make = module.forward if key.pass_ == "forward" else module.backward
    more = {"resident": False} if key.plan == "stream" else {}
    cell = CELLS[key.cell](numbers.real)
    function, signature = make(numbers, cell, key.reach or key.rows, **more)
    return Source(function, signature, most_threads(key))
