"""What is compiled: a few steps of a recurrence, unrolled, on plain tensors.

    forward    h = activation(z_t + h W_hh^T)                         for t = 0 ... K - 1
    backward   dz_t = (g + grad_y_t) activation'(y_t),  g = dz_t W_hh  for t = K - 1 ... 0

On the CPU, Inductor makes one C++ function of a whole chunk, products included, if they are written
as sums over k of products that broadcast:

    (h W)[b, p, l] = sum_k h[b, k] panel[p, k, l]        panel[p, k, l] = W[k, p * L + l]

A loop over k then adds a vector of L columns, times one element of a row. R rows are written as R
reductions that read the same vector, or U panels as U that read the same element, so that Inductor
fuses them into one loop with as many accumulators: a register tile, as in Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", 2008. They read one tensor with all rows of the
step before, which keeps it from fusing different steps of different rows instead. The sum goes over
the H true features alone, so that a NaN in a column of padding reaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rnnjit_inductor.plan import Tile

Product = Callable[[Tensor, Tensor], Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


def gradient_of(cell: str, grad: Tensor, y: Tensor) -> Tensor:
    """`grad * activation'`, from the state y, as eager's own operator computes it."""
    aten = torch.ops.aten
    found: Tensor
    found = aten.tanh_backward(grad, y) if cell == "tanh" else aten.threshold_backward(grad, y, 0)
    return found


def forward_chunk(
    cell: str, steps: int, product: Product
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor]]:
    """A function of z `[K, R, q, U, P, L]`, h `[R, q, U, P, L]` and the weights.

    It returns the states `[K, R, q, U, P, L]`.
    """
    activation = _ACTIVATIONS[cell]

    def chunk(z: Tensor, h: Tensor, weights: Tensor) -> tuple[Tensor]:
        states = []
        for t in range(steps):
            h = activation(z[t] + product(h, weights))
            states.append(h)
        return (torch.stack(states),)

    return chunk


def backward_chunk(
    cell: str, steps: int, product: Product
) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function of y and grad_y `[K, R, q, U, P, L]`, g `[R, q, U, P, L]` and the weights.

    It returns dz `[K, R, q, U, P, L]` and the g of the step before the chunk.
    """

    def chunk(y: Tensor, grad_y: Tensor, g: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for t in reversed(range(steps)):
            dz = gradient_of(cell, g + grad_y[t], y[t])
            g = product(dz, weights)
            found.append(dz)
        return torch.stack(found[::-1]), g

    return chunk


def tile_product(tile: Tile) -> Product:
    """The product of rows `[R, q, U, P, L]` and panels `[U, P, H, L]`, as a register tile."""

    def product(h: Tensor, panels: Tensor) -> Tensor:
        rows = h.flatten(2).narrow(2, 0, panels.shape[2])[:, :, None, :, None]
        if tile.columns == 1:
            return torch.stack([(row * panels[0]).sum(2) for row in rows]).unsqueeze(2)
        return torch.stack([(rows[0] * panel).sum(2) for panel in panels], 1).unsqueeze(0)

    return product


def matrix_product(h: Tensor, panels: Tensor) -> Tensor:
    """The product of rows `[1, q, 1, P, 1]` and panels `[1, P, H, 1]`, by torch's own operator."""
    matrix = panels[0, :, :, 0].t()
    rows = h.view(h.shape[1], -1).narrow(1, 0, matrix.shape[0])
    return torch.mm(rows, matrix).view(h.shape)


def panels(matrix: Tensor, tile: Tile) -> Tensor:
    """`[U, P, H, L]` of a matrix `[H, H]` that rows are multiplied by, with zeros for padding."""
    H = matrix.shape[0]
    columns = tile.padded(H)
    padded = torch.nn.functional.pad(matrix, (0, columns - H)) if columns > H else matrix
    cut = padded.view(H, tile.columns, -1, tile.lanes)
    return cut.permute(1, 2, 0, 3).contiguous()
