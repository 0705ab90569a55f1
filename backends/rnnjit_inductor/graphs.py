"""What is compiled: a few steps of a recurrence, unrolled, on plain tensors.

    forward    h = step(z_t + h W_hh^T, h)                                for t = 0 ... K - 1
    backward   dz_t, d_t = backward(g + grad_y_t, ...),  g = d_t + dz_t W_hh  for t = K - 1 ... 0

`step` and `backward` are the cell's own programs. Every gate has its own tensor of z and of W_hh:
z = (z_1 .. z_G), W_hh = (W_1 .. W_G). g is the gradient of h_t, and d_t the part of the gradient of
h_{t-1} that bypasses the product.

On the CPU, Inductor makes one C++ function of a whole chunk, products included, if they are written
as sums over k of products that broadcast:

    (h W)[b, p, l] = sum_k h[b, k] panel[p, k, l]        panel[p, k, l] = W[k, p * L + l]

A loop over k then adds a vector of L columns, times one element of a row. R rows are written as R
reductions that read the same vector, or U panels as U that read the same element, so that Inductor
fuses them into one loop with as many accumulators: a register tile, as in Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008. All reductions read one
tensor with all rows of the previous step; otherwise Inductor would fuse different steps of
different rows instead. The sum runs over the H true features only, so that a NaN in a padding
column has no effect.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rnnjit.cells import Cell
from rnnjit_inductor.plan import Tile
from rnnjit_inductor.pointwise import evaluate_like, step_of

Product = Callable[[Tensor, Tensor], Tensor]


def forward_chunk(cell: Cell, steps: int, product: Product) -> Callable[..., tuple[Tensor, ...]]:
    """A function of each gate's z `[K, R, q, U, P, L]`, h `[R, q, U, P, L]` and G panels.

    It returns the states and each saved value `[K, R, q, U, P, L]`.
    """
    program, G = step_of(cell, True), len(cell.gates)

    def chunk(*tensors: Tensor) -> tuple[Tensor, ...]:
        gates, h, weights = tensors[:G], tensors[G], tensors[G + 1 :]
        found = []
        for t in range(steps):
            sums = [z[t] + product(h, panel) for z, panel in zip(gates, weights, strict=True)]
            outputs = _present(evaluate_like(h, program, [*sums, h]))
            h = outputs[0]
            found.append(outputs)
        return tuple(map(torch.stack, zip(*found, strict=True)))

    return chunk


def backward_chunk(cell: Cell, steps: int, product: Product) -> Callable[..., tuple[Tensor, ...]]:
    """A function of what the cell's backward program reads, grad_y, g and G panels.

    The blocks that are read and grad_y are `[K, R, q, U, P, L]`, g is `[R, q, U, P, L]`. It returns
    each gate's dz `[K, R, q, U, P, L]`, and the g of the state before the chunk; if
    `has_share(cell)`, the g of the state before each of its steps `[K, R, q, U, P, L]`.
    """
    G = len(cell.gates)

    def chunk(*tensors: Tensor) -> tuple[Tensor, ...]:
        *blocks, g = tensors[:-G]
        weights = tensors[-G:]
        found, before = [], []
        for t in reversed(range(steps)):
            outputs = evaluate_like(g, cell.backward, [*(block[t] for block in blocks), g])
            *dz, share = outputs
            products = [product(d, w) for d, w in zip(dz, weights, strict=True) if d is not None]
            terms = _present([*products, share])
            g = sum(terms[1:], terms[0]) if terms else torch.zeros_like(g)
            found.append([torch.zeros_like(g) if d is None else d for d in dz])
            before.append(g)
        gates = tuple(torch.stack(own[::-1]) for own in zip(*found, strict=True))
        return *gates, torch.stack(before[::-1]) if has_share(cell) else g

    return chunk


def has_share(cell: Cell) -> bool:
    """Whether a part of the previous state's gradient bypasses the product."""
    return cell.backward.outputs[-1] is not None


def _present(values: list[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]


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
