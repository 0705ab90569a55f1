"""The gradients of a layer's weights: one product or one sum over all rows for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from rnnjit.ir import CellSpec
from rnnjit.recurrence.base import Backward, dz_blocks
from rnnjit.recurrence.rows import states_before
from rnnjit.spec import LayerSpec

#: Rows in a block of `_sum_of_products`, and the most elements of a result that it computes so.
_BLOCK, _SMALL = 64, 1024


def weight_grads(call: Backward, x: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of the weights that need one, after the recurrence; no two share memory."""
    layer, count = call.layer, call.layer.weights_per_direction
    found: list[Tensor | None] = []
    for d in range(layer.num_directions):
        own = needed[d * count : (d + 1) * count]
        first = count - len(layer.cell.parameters)
        found += [*_matrix_grads(call, x, d, own[:first]), *_parameter_grads(call, d, own[first:])]
    return tuple(found)


def _matrix_grads(
    call: Backward, x: Tensor, d: int, needed: tuple[bool, ...]
) -> Iterator[Tensor | None]:
    """The gradients of a direction's matrices and biases."""
    layer, dz_x, P = call.layer, of_inputs(call.layer, call.dz, [d]), call.layer.output_size
    H, apart, own = layer.hidden_size, not _is_sum(layer.cell), slice(d * P, (d + 1) * P)
    dz_h = _of_hidden(layer, call.dz, d) if apart else dz_x
    want_ih, want_hh, *want_more = needed
    of_x = x[:, : layer.input_size] if layer.cell.row_inputs else x
    yield _sum_of_products(dz_x.t(), of_x) if want_ih else None
    if want_hh and layer.cell.has_product:
        before = states_before(call.rows, call.starts, call.y[:, own], call.hx[0][d], d)
        yield _sum_of_products(dz_h.t(), before)
    else:
        yield torch.zeros_like(call.w_hh[d]) if want_hh else None
    if layer.bias:
        # If dz_x is dz_h, both biases have the same gradient, which must not share memory.
        b_ih, b_hh, *want_more = want_more
        total = dz_x.sum(0) if b_ih or (b_hh and not apart) else None
        yield total if b_ih else None
        if b_hh and not layer.cell.has_product:
            yield dz_x.new_zeros(dz_x.shape[1])
        elif b_hh and apart:
            yield dz_h.sum(0)
        else:
            yield total.clone() if b_hh and total is not None else None
    if call.dh is not None and call.out is not None:
        out = call.out[:, d * H : (d + 1) * H]
        yield _sum_of_products(call.dh[:, own].t(), out) if want_more[0] else None


def _parameter_grads(call: Backward, d: int, needed: tuple[bool, ...]) -> Iterator[Tensor | None]:
    """The gradients of a direction's parameters."""
    count, H = len(needed), call.layer.hidden_size
    reached = gradients_of(call.layer.cell, "parameters")
    for k, (need, has_one) in enumerate(zip(needed, reached, strict=True), d * count):
        if not need:
            yield None
        elif has_one and call.grad_parameters is not None:
            yield call.grad_parameters[:, k * H : (k + 1) * H].sum(0)
        else:
            yield call.dz.new_zeros(H)


def gradients_of(cell: CellSpec, what: Literal["parameters", "row_inputs"]) -> list[bool]:
    """For each parameter or row input, whether the cell's backward program has its gradient."""
    first = len(cell.accumulators) + len(cell.states)
    if what == "row_inputs":
        first += len(cell.parameters)
    outputs = cell.backward.outputs[first:][: len(getattr(cell, what))]
    return [number is not None for number in outputs]


def _is_sum(cell: CellSpec) -> bool:
    """Whether no gate has its zx and zh apart: both share dz then, if there is a zh at all."""
    return len(cell.accumulators) == len(cell.gates)


def of_inputs(layer: LayerSpec, dz: Tensor, directions: Sequence[int]) -> Tensor:
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
    total = torch.bmm(blocks, of[:stop].reshape(full, _BLOCK, of.shape[1])).sum(0)
    return total.addmm_(dz_t[:, stop:], of[stop:]) if stop < N else total
