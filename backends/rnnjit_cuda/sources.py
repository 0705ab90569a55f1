"""From a kernel's name to its Python source, built for its dtype, cell and size."""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnjit_cuda import (
    block_kernel,
    cell_block_kernel,
    cell_free_kernel,
    cell_grid_kernel,
    cell_register_kernel,
    cell_step_kernel,
    grid_kernel,
    register_kernel,
    step_kernel,
)
from rnnjit_cuda.cell_layout import layout_of
from rnnjit_cuda.cells import pointwise, steps
from rnnjit_cuda.kernels import Family, KernelKey, most_threads, variants
from rnnjit_cuda.primitives import element, inlined, library

#: The kernels of Elman cells, whose y takes the place of z.
_ELMAN: dict[Family, Any] = {
    "register": register_kernel,
    "block": block_kernel,
    "grid": grid_kernel,
    "stream": grid_kernel,
    "step": step_kernel,
}
#: Those of other cells with a recurrent product.
_CELLS: dict[Family, Any] = {
    "register": cell_register_kernel,
    "block": cell_block_kernel,
    "grid": cell_grid_kernel,
    "stream": cell_grid_kernel,
    "step": cell_step_kernel,
}
#: Those of cells without one.
_FREE: dict[Family, Any] = {"register": cell_free_kernel, "step": cell_step_kernel}


class Source(NamedTuple):
    """A kernel that is ready to be compiled.

    Attributes:
        function: plain Python, which the simulator runs too.
        signature: numba types of its arguments.
        most_threads: the most threads of a block that it will be launched with.
        together: how many arguments, the first ones, it takes as one tuple; 0 for none.
    """

    function: Any
    signature: tuple[Any, ...]
    most_threads: int
    together: int


def source(key: KernelKey) -> Source:
    """Build a kernel.

    Raises:
        ValueError: there is no such kernel.
    """
    if key not in variants([key.cell]):
        raise ValueError(f"there is no kernel {key}: see rnnjit_cuda.kernels.variants()")
    numbers, size = element(key.dtype), key.reach or key.rows
    more = {"resident": False} if key.family == "stream" else {}
    if key.cell.is_elman:
        cell: Any = (pointwise(key.cell, numbers.real, library, inlined),)
        module = _ELMAN[key.family]
    else:
        cell = (
            steps(key.cell, numbers.real, library, inlined, recorded=key.recorded),
            layout_of(key.cell, recorded=key.recorded),
        )
        module = (_CELLS if key.cell.has_product else _FREE)[key.family]
    make = module.forward if key.pass_ == "forward" else module.backward
    function, signature = make(numbers, *cell, size, **more)
    together = 0 if key.cell.is_elman else len(signature[0])
    return Source(function, signature, most_threads(key), together)
