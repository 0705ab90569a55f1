"""A layer as GEMMs over all rows around one recurrence.

    forward    Z = X W_ih^T + b        out, s_t = step(z_t + W_hh h_{t-1}, s_{t-1})
    backward   dz_t, g_{t-1} = backward(g_t + grad_y_t, ...),   g_{t-1} += dz_t W_hh
               dX = dZ W_ih   dW_ih = dZ^T X   dW_hh = dZ^T H_before   db = sum_n dz_n

A `Recurrence` computes the second column step by step; the other products are one GEMM each, in the
precision that torch is set to for matmul (TF32 only if allowed). For an Elman cell, Z and y share
memory. The columns of the directions are adjacent, so that Z and dX are one GEMM for both
directions. A gate whose zx and zh the cell uses separately has one gradient for each: that of zx
is for x, W_ih and b_ih, that of zh for h, W_hh and b_hh.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit.backend import LayerGrads, LayerOutput, Needs, States
from rnnjit.cells import Cell
from rnnjit.recurrence.base import Backward, Forward, Recurrence
from rnnjit.recurrence.rows import offsets, states_before
from rnnjit.spec import LayerSpec, Rows

#: Rows in a block of `_sum_of_products`, and the most elements of a result that it computes so.
_BLOCK, _SMALL = 64, 1024


def layer_forward(
    recurrence: Recurrence,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    keep: bool,
) -> LayerOutput:
    """`Backend.forward` by a recurrence, for cells that `why_not_cell` accepts."""
    cell = layer.cell
    w_ih, w_hh, bias, b_hh = _by_kind(layer, weights)
    projection = _beside(w_ih)
    z = torch.addmm(_beside(bias), x, projection.t()) if bias else x @ projection.t()
    width = layer.num_directions * layer.hidden_size
    y = z if cell.is_elman else z.new_empty((rows.N, width))
    saved = tuple([z.new_empty((rows.N, width)) for _ in cell.saved]) if keep else ()
    h_n = tuple([torch.empty_like(state) for state in hx])
    starts = _starts(rows, x)
    recurrence.forward(Forward(layer, rows, starts, w_hh, b_hh, hx, z, y, saved, h_n))
    return LayerOutput(y, h_n, saved)


def layer_backward(
    recurrence: Recurrence,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    output: LayerOutput,
    grad_y: Tensor | None,
    grad_h_n: tuple[Tensor | None, ...],
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward` by a recurrence; `output` is the result of `layer_forward`."""
    w_ih, w_hh, _, _ = _by_kind(layer, weights)
    starts, y = _starts(rows, x), output.y
    D, H, A = layer.num_directions, layer.hidden_size, len(layer.cell.accumulators)
    dz, grad_hx = y.new_empty((rows.N, D * A * H)), tuple(map(torch.empty_like, hx))
    grad_y = None if grad_y is None else grad_y.contiguous()
    grad_h_n = tuple(None if grad is None else grad.contiguous() for grad in grad_h_n)
    recurrence.backward(
        Backward(layer, rows, starts, w_hh, hx, y, output.saved, grad_y, grad_h_n, dz, grad_hx)
    )
    grad_x = _of_inputs(layer, dz, range(D)) @ _beside(w_ih) if needs.x else None
    wanted = zip(grad_hx, needs.hx, strict=True)
    return LayerGrads(
        grad_x,
        tuple(grad if need else None for grad, need in wanted),
        _weight_grads(layer, rows, starts, x, hx, y, dz, needs.weights),
    )


def _weight_grads(
    layer: LayerSpec,
    rows: Rows,
    starts: Tensor | None,
    x: Tensor,
    hx: States,
    y: Tensor,
    dz: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients of the weights that need one; no two share memory."""
    H, count = layer.hidden_size, layer.weights_per_direction
    apart = not _is_sum(layer.cell)
    found: list[Tensor | None] = []
    for d in range(layer.num_directions):
        dz_x, states = _of_inputs(layer, dz, [d]), y[:, d * H : (d + 1) * H]
        dz_h = _of_hidden(layer, dz, d) if apart else dz_x
        want_ih, want_hh, *want_b = needed[d * count : (d + 1) * count]
        found.append(_sum_of_products(dz_x.t(), x) if want_ih else None)
        if want_hh:
            before = states_before(rows, starts, states, hx[0][d], d)
            found.append(_sum_of_products(dz_h.t(), before))
        else:
            found.append(None)
        if want_b:
            # If dz_x is dz_h, both biases have the same gradient, which must not share memory.
            b_ih, b_hh = want_b
            total = dz_x.sum(0) if b_ih or (b_hh and not apart) else None
            found.append(total if b_ih else None)
            if b_hh and apart:
                found.append(dz_h.sum(0))
            else:
                found.append(total.clone() if b_hh and total is not None else None)
    return tuple(found)


def _is_sum(cell: Cell) -> bool:
    """Whether the cell uses zx and zh of every gate only in their sum, so that both share dz."""
    return len(cell.accumulators) == len(cell.gates)


def _of_inputs(layer: LayerSpec, dz: Tensor, directions: Sequence[int]) -> Tensor:
    """The columns of dz that are gradients of zx, `[N, len(directions)*G*H]`."""
    return _columns(layer, dz, directions, [a.has_input for a in layer.cell.accumulators])


def _of_hidden(layer: LayerSpec, dz: Tensor, direction: int) -> Tensor:
    """The columns of dz that are gradients of a direction's zh, `[N, G*H]`."""
    return _columns(layer, dz, [direction], [a.has_hidden for a in layer.cell.accumulators])


def _columns(
    layer: LayerSpec, dz: Tensor, directions: Sequence[int], which: Sequence[bool]
) -> Tensor:
    """The columns of some directions and accumulators; a view if they are adjacent."""
    width = len(which) * layer.hidden_size
    own = dz[:, directions[0] * width : (directions[-1] + 1) * width]
    if all(which):
        return own
    parts = own.view(len(own), len(directions), len(which), layer.hidden_size)
    kept = [k for k, keep in enumerate(which) if keep]
    indices = torch.tensor(kept, dtype=torch.int64, device=dz.device)
    return parts.index_select(2, indices).flatten(1)


def _starts(rows: Rows, x: Tensor) -> Tensor | None:
    """The `offsets` of packed rows; None for a dense batch, which does not need them."""
    return None if rows.batch_sizes is None else offsets(rows, x.device)


def _beside(parts: list[Tensor]) -> Tensor:
    """Concatenate the tensors of the directions; no copy if there is one direction."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _sum_of_products(dz_t: Tensor, of: Tensor) -> Tensor:
    """Compute `dz_t @ of`, by blocks of rows if the result is small.

    For a small result a GEMM adds all N rows in sequence, and the rounding errors accumulate. Eager
    adds the rows of each step first and then the steps; blocks are similarly accurate.
    """
    H, N = dz_t.shape
    full = N // _BLOCK
    if full < 2 or H * of.shape[1] > _SMALL:
        return dz_t @ of
    stop = full * _BLOCK
    blocks = dz_t[:, :stop].reshape(H, full, _BLOCK).transpose(0, 1)
    total = torch.bmm(blocks, of[:stop].reshape(full, _BLOCK, -1)).sum(0)
    return total.addmm_(dz_t[:, stop:], of[stop:]) if stop < N else total


def _by_kind(
    layer: LayerSpec, weights: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """W_ih, W_hh (contiguous), the bias of Z and `Forward.b_hh`, one for each direction.

    For gates whose zx and zh occur only in their sum, the bias of Z is the sum of both biases.
    """
    count, H = layer.weights_per_direction, layer.hidden_size
    apart = [a.gate for a in layer.cell.accumulators if a.part == "hidden"]
    w_ih, w_hh, bias, b_hh = [], [], [], []
    for d in range(layer.num_directions):
        own = weights[d * count : (d + 1) * count]
        w_ih.append(own[0])
        w_hh.append(own[1].contiguous())
        if not layer.bias:
            continue
        if not apart:
            bias.append(own[2] + own[3])
            continue
        total, hidden = own[2] + own[3], torch.zeros_like(own[3])
        for gate in apart:
            columns = slice(gate * H, (gate + 1) * H)
            total[columns], hidden[columns] = own[2][columns], own[3][columns]
        bias.append(total)
        b_hh.append(hidden)
    return w_ih, w_hh, bias, b_hh
