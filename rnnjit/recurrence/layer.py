"""A layer as GEMMs over all rows around one recurrence.

    forward    Z = X W_ih^T + b        y_t = activation(z_t + W_hh h_{t-1})
    backward   dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh
               dX = dZ W_ih   dW_ih = dZ^T X   dW_hh = dZ^T H_before   db = sum_n dz_n

Only the middle column is done step by step, by a `Recurrence`; Z and y share their memory, and the
other products are one GEMM each, in whatever precision torch has for matmul (TF32 only if allowed).
Directions lie beside each other in columns, so that Z and dX are one GEMM for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit.backend import LayerGrads, LayerOutput, Needs
from rnnjit.recurrence.contract import Backward, Forward, Recurrence
from rnnjit.recurrence.rows import offsets, states_before
from rnnjit.spec import LayerSpec, Rows

#: Rows that are added up at a time, and the most elements of a result for which it is done so.
_BLOCK, _SMALL = 64, 1024


def layer_forward(
    recurrence: Recurrence,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
) -> LayerOutput:
    """`Backend.forward` by a recurrence."""
    w_ih, w_hh, bias = _by_kind(layer, weights)
    projection = _beside(w_ih)
    y = torch.addmm(_beside(bias), x, projection.t()) if bias else x @ projection.t()
    h_n = torch.empty_like(h0)
    recurrence.forward(Forward(layer, rows, _starts(rows, x), w_hh, h0, y, h_n))
    return LayerOutput(y, h_n)


def layer_backward(
    recurrence: Recurrence,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward` by a recurrence."""
    w_ih, w_hh, _ = _by_kind(layer, weights)
    starts = _starts(rows, x)
    dz, grad_h0 = torch.empty_like(y), torch.empty_like(h0)
    grad_y = None if grad_y is None else grad_y.contiguous()
    grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
    recurrence.backward(Backward(layer, rows, starts, w_hh, y, grad_y, grad_h_n, dz, grad_h0))
    grad_x = None
    if needs.x:
        grad_x = dz @ _beside(w_ih)
    return LayerGrads(
        grad_x,
        grad_h0 if needs.h0 else None,
        _weight_grads(layer, rows, starts, x, h0, y, dz, needs.weights),
    )


def _weight_grads(
    layer: LayerSpec,
    rows: Rows,
    starts: Tensor | None,
    x: Tensor,
    h0: Tensor,
    y: Tensor,
    dz: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients of the weights that need one, each in memory of its own."""
    H, count = layer.hidden_size, layer.weights_per_direction
    found: list[Tensor | None] = []
    for d in range(layer.num_directions):
        own = slice(d * H, (d + 1) * H)
        dz_t, states = dz[:, own].t(), y[:, own]
        want_ih, want_hh, *want_b = needed[d * count : (d + 1) * count]
        found.append(_sum_of_products(dz_t, x) if want_ih else None)
        if want_hh:
            found.append(_sum_of_products(dz_t, states_before(rows, starts, states, h0[d], d)))
        else:
            found.append(None)
        if want_b:
            # The biases' gradients are one sum, each in memory of its own.
            b_ih, b_hh = want_b
            total = dz[:, own].sum(0) if b_ih or b_hh else None
            found.append(total if b_ih else None)
            found.append(total.clone() if b_hh and total is not None else None)
    return tuple(found)


def _starts(rows: Rows, x: Tensor) -> Tensor | None:
    """`offsets`, which those of a dense batch need not be asked for."""
    return None if rows.batch_sizes is None else offsets(rows, x.device)


def _beside(parts: list[Tensor]) -> Tensor:
    """The directions' tensors one behind the other; not copied where there is one direction."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _sum_of_products(dz_t: Tensor, of: Tensor) -> Tensor:
    """`dz_t @ of`, small results in blocks of rows.

    A GEMM adds up all rows one by one where there is little else to do, and so collects the error
    of every addition; eager adds up a step's rows, and then the steps.
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
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """W_ih, W_hh (contiguous) and b_ih + b_hh (if there are biases), one for each direction."""
    count = layer.weights_per_direction
    w_ih, w_hh, bias = [], [], []
    for d in range(layer.num_directions):
        own = weights[d * count : (d + 1) * count]
        w_ih.append(own[0])
        w_hh.append(own[1].contiguous())
        if layer.bias:
            bias.append(own[2] + own[3])
    return w_ih, w_hh, bias
