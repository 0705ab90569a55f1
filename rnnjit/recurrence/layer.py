"""A layer as GEMMs over all rows around one recurrence.

    forward    Z = X W_ih^T + b        out, s_t = step(z_t + W_hh h_{t-1}, s_{t-1}),  h_t = W_hr out
    backward   dz_t, g_{t-1} = backward(g_t + grad_y_t, ...),   g_{t-1} += dz_t W_hh
               dX = dZ W_ih   dW_ih = dZ^T X   dW_hh = dZ^T H_before   db = sum_n dz_n
               dW_hr = dH^T OUT

A `Recurrence` computes the first lines step by step; the other products are one GEMM each, in the
precision that torch is set to for matmul (TF32 only if allowed). Without a projection, W_hr, h_t is
out. For an Elman cell, Z and y share memory. The columns of the directions are adjacent, so that Z
and dX are one GEMM for both directions. A gate whose zx and zh the cell uses separately has one
gradient for each: that of zx is for x, W_ih and b_ih, that of zh for h, W_hh and b_hh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerGrads, LayerOutput, Needs, States
from rnnjit.ir import CellSpec
from rnnjit.recurrence.base import Backward, Forward, Recurrence, dz_blocks
from rnnjit.recurrence.rows import offsets, states_before
from rnnjit.spec import LayerSpec, Rows

#: Rows in a block of `_sum_of_products`, and the most elements of a result that it computes so.
_BLOCK, _SMALL = 64, 1024


class Saved(NamedTuple):
    """What `layer_forward` saves for the backward pass, beside y.

    Attributes:
        values: `[N, D*H]` for each of `cell.saved`.
        states: `[N, D*H]` for each state but the first, its values after each row's step.
        out: `[N, D*H]`, the outputs before the projection; None if there is no projection.
    """

    values: States
    states: States
    out: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, as `LayerOutput.saved`."""
        return (*self.values, *self.states, *(() if self.out is None else (self.out,)))

    @staticmethod
    def split(layer: LayerSpec, tensors: Sequence[Tensor]) -> Saved:
        """From `tensors`, of a layer's forward pass."""
        count = len(layer.cell.saved)
        rest = list(tensors[count:])
        out = rest.pop() if layer.proj_size else None
        return Saved(tuple(tensors[:count]), tuple(rest), out)

    @staticmethod
    def count(layer: LayerSpec) -> int:
        """How many tensors a layer saves."""
        return len(layer.cell.saved) + len(layer.cell.states) - 1 + (layer.proj_size > 0)


def layer_forward(
    recurrence: Recurrence,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    keep: bool,
) -> LayerOutput:
    """`Backend.forward` by a recurrence.

    It takes cells that `why_not_cell` accepts and, with a projection, `why_not_projected`.
    """
    cell, D = layer.cell, layer.num_directions
    own = _by_kind(layer, weights)
    projection = _beside(own.w_ih)
    z = torch.addmm(_beside(own.bias), x, projection.t()) if own.bias else x @ projection.t()
    in_place = cell.is_elman and not layer.proj_size
    y = z if in_place else z.new_empty((rows.N, D * layer.output_size))
    saved = Saved((), (), None)
    if keep:
        kept = [z.new_empty((rows.N, D * layer.hidden_size)) for _ in range(Saved.count(layer))]
        saved = Saved.split(layer, kept)
    h_n = tuple([torch.empty_like(state) for state in hx])
    starts = _starts(rows, x)
    recurrence.forward(
        Forward(layer, rows, starts, own.w_hh, own.b_hh, own.w_hr, hx, z, y, *saved, h_n)
    )
    return LayerOutput(y, h_n, saved.tensors)


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
    own = _by_kind(layer, weights)
    starts, y, saved = _starts(rows, x), output.y, Saved.split(layer, output.saved)
    D, H, A = layer.num_directions, layer.hidden_size, len(layer.cell.accumulators)
    dz, grad_hx = y.new_empty((rows.N, D * A * H)), tuple(map(torch.empty_like, hx))
    dh = torch.empty_like(y) if layer.proj_size else None
    grad_y = None if grad_y is None else grad_y.contiguous()
    grad_h_n = tuple(None if grad is None else grad.contiguous() for grad in grad_h_n)
    call = Backward(
        *(layer, rows, starts, own.w_hh, own.w_hr, hx, y, *saved, grad_y, grad_h_n),
        *(dz, dh, grad_hx),
    )
    recurrence.backward(call)
    grad_x = _of_inputs(layer, dz, range(D)) @ _beside(own.w_ih) if needs.x else None
    wanted = zip(grad_hx, needs.hx, strict=True)
    return LayerGrads(
        grad_x,
        tuple(grad if need else None for grad, need in wanted),
        _weight_grads(call, x, needs.weights),
    )


def _weight_grads(call: Backward, x: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of the weights that need one, after the recurrence; no two share memory."""
    layer, dz = call.layer, call.dz
    H, P, count = layer.hidden_size, layer.output_size, layer.weights_per_direction
    apart = not _is_sum(layer.cell)
    found: list[Tensor | None] = []
    for d in range(layer.num_directions):
        dz_x, own = _of_inputs(layer, dz, [d]), slice(d * P, (d + 1) * P)
        dz_h = _of_hidden(layer, dz, d) if apart else dz_x
        want_ih, want_hh, *want_more = needed[d * count : (d + 1) * count]
        found.append(_sum_of_products(dz_x.t(), x) if want_ih else None)
        if want_hh:
            before = states_before(call.rows, call.starts, call.y[:, own], call.hx[0][d], d)
            found.append(_sum_of_products(dz_h.t(), before))
        else:
            found.append(None)
        if layer.bias:
            # If dz_x is dz_h, both biases have the same gradient, which must not share memory.
            b_ih, b_hh, *want_more = want_more
            total = dz_x.sum(0) if b_ih or (b_hh and not apart) else None
            found.append(total if b_ih else None)
            if b_hh and apart:
                found.append(dz_h.sum(0))
            else:
                found.append(total.clone() if b_hh and total is not None else None)
        if call.dh is not None and call.out is not None:
            out = call.out[:, d * H : (d + 1) * H]
            found.append(_sum_of_products(call.dh[:, own].t(), out) if want_more[0] else None)
    return tuple(found)


def _is_sum(cell: CellSpec) -> bool:
    """Whether the cell uses zx and zh of every gate only in their sum, so that both share dz."""
    return len(cell.accumulators) == len(cell.gates)


def _of_inputs(layer: LayerSpec, dz: Tensor, directions: Sequence[int]) -> Tensor:
    """The columns of dz that are gradients of zx, gate by gate: `[N, len(directions)*G*H]`."""
    blocks = zip(layer.cell.accumulators, dz_blocks(layer.cell), strict=True)
    return _columns(layer, dz, directions, [block for each, block in blocks if each.has_input])


def _of_hidden(layer: LayerSpec, dz: Tensor, direction: int) -> Tensor:
    """The columns of dz that are gradients of a direction's zh, gate by gate: `[N, G*H]`."""
    return _columns(layer, dz, [direction], range(len(layer.cell.gates)))


def _columns(
    layer: LayerSpec, dz: Tensor, directions: Sequence[int], blocks: Sequence[int]
) -> Tensor:
    """Some blocks of some directions, one after the other; a view if they are adjacent."""
    H, A = layer.hidden_size, len(layer.cell.accumulators)
    wanted = [d * A + block for d in directions for block in blocks]
    if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
        return dz[:, wanted[0] * H : (wanted[-1] + 1) * H]
    parts = dz.view(len(dz), layer.num_directions * A, H)
    return torch.cat([parts[:, block] for block in wanted], 1)


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
    columns, N = dz_t.shape
    full = N // _BLOCK
    if full < 2 or columns * of.shape[1] > _SMALL:
        return dz_t @ of
    stop = full * _BLOCK
    blocks = dz_t[:, :stop].reshape(columns, full, _BLOCK).transpose(0, 1)
    total = torch.bmm(blocks, of[:stop].reshape(full, _BLOCK, -1)).sum(0)
    return total.addmm_(dz_t[:, stop:], of[stop:]) if stop < N else total


class _Weights(NamedTuple):
    """A layer's weights by their kind, one for each direction.

    Attributes:
        w_ih: `[G*H, I]`.
        w_hh: as `Forward.w_hh`.
        bias: `[G*H]`, the bias of Z; empty if there are no biases.
        b_hh: as `Forward.b_hh`.
        w_hr: as `Forward.w_hr`.
    """

    w_ih: list[Tensor]
    w_hh: list[Tensor]
    bias: list[Tensor]
    b_hh: list[Tensor]
    w_hr: list[Tensor]


def _by_kind(layer: LayerSpec, weights: Sequence[Tensor]) -> _Weights:
    """Sort weights by kind.

    For gates whose zx and zh occur only in their sum, the bias of Z is the sum of both biases.
    """
    count, H = layer.weights_per_direction, layer.hidden_size
    apart = [a.gate for a in layer.cell.accumulators if a.part == "hidden"]
    found = _Weights([], [], [], [], [])
    for d in range(layer.num_directions):
        w_ih, w_hh, *own = weights[d * count : (d + 1) * count]
        found.w_ih.append(w_ih)
        found.w_hh.append(w_hh.contiguous())
        if layer.proj_size:
            found.w_hr.append(own.pop().contiguous())
        if not layer.bias:
            continue
        b_ih, b_hh = own
        total = b_ih + b_hh
        found.bias.append(total)
        if apart:
            hidden = torch.zeros_like(b_hh)
            for gate in apart:
                columns = slice(gate * H, (gate + 1) * H)
                total[columns], hidden[columns] = b_ih[columns], b_hh[columns]
            found.b_hh.append(hidden)
    return found
