"""The pointwise part of one time step; torch computes the matrix product.

    forward    h = activation(z), in place
    backward   dz = (g + grad_y) activation'(y)

A thread owns a column; each of the n blocks in y takes every n-th row. Any grid is valid. The
caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cells import Pointwise
from rnnjit_cuda.primitives import Element


def forward(element: Element, cell: Pointwise, _rows: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(y, rows, H, ld)`: y `[rows, H]`, `ld` elements between rows, is overwritten.
    """
    up, down, activation = element.up, element.down, cell.activation

    def kernel(y: Any, rows: int, H: int, ld: int) -> None:
        column = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if column < H:
            for row in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
                at = row * ld + column
                y[at] = down(activation(up(y[at])))

    return kernel, (types.CPointer(element.store), *[types.int64] * 3)


def backward(element: Element, cell: Pointwise, _rows: int) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(dz, grad, grad_y, y, rows, H, ld, has_grad_y)`: dz `[rows, H]` is written. dz, grad_y
    and y have `ld` elements between rows, grad `[rows, H]` is contiguous; all have the stored
    dtype. grad_y counts as zero, and is not read, if `has_grad_y` is 0.
    """
    up, down, gradient = element.up, element.down, cell.gradient

    def kernel(
        dz: Any,
        grad: Any,
        grad_y: Any,
        y: Any,
        rows: int,
        H: int,
        ld: int,
        has_grad_y: int,
    ) -> None:
        column = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if column < H:
            for row in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
                at = row * ld + column
                whole = up(grad[row * H + column])
                if has_grad_y != 0:
                    whole += up(grad_y[at])
                dz[at] = down(gradient(whole, up(y[at])))

    return kernel, (*[types.CPointer(element.store)] * 4, *[types.int64] * 4)
