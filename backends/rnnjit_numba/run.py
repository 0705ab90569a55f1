"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments
from rnnjit_numba.library import Library, library
from rnnjit_numba.plan import Plan, plan
from rnnjit_numba.team import most_threads

_CELLS = {"tanh": 0, "relu": 1}
#: Barrier counters, one cache line each: one for the team, one for each direction.
_SYNC_WORDS = 8 * 4
#: Must be what `reductions.REDUCTION_ROWS` is.
_REDUCTION_ROWS = 256


class Runner:
    """Calls the kernels for tensors; holds no state of a call."""

    def forward(
        self,
        bits: int,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
    ) -> LayerOutput:
        """`Backend.forward` for elements of `bits` bits."""
        kernels = library(bits)
        I, H, D = layer.input_size, layer.hidden_size, layer.num_directions
        weights = [w.contiguous() for w in weights]
        y = x.new_empty((rows.N, D * H))
        h_n = x.new_empty((D, rows.B, H))
        shape = _Shape(kernels, bits, I, H)
        cut = plan(layer, rows, most_threads(torch.get_num_threads()), shape.wide_h)
        scratch = x.new_empty(D * shape.forward_bytes // shape.size)
        sync = torch.zeros(_SYNC_WORDS, dtype=torch.int64)
        arguments = ForwardArguments(
            *_problem(layer, rows, cut),
            hoist=int(cut.hoist),
            x=x.data_ptr(),
            h0=h0.data_ptr(),
            y=y.data_ptr(),
            h_n=h_n.data_ptr(),
            **_weight_addresses(layer, weights, biases=True),
            scratch=scratch.data_ptr(),
            packed_inputs=shape.packed_inputs,
            packed_row=shape.packed_row,
            packed=shape.forward_bytes,
            sync=sync.data_ptr(),
        )
        kernels.forward(arguments, cut.threads)
        return LayerOutput(y, h_n)

    def backward(
        self,
        bits: int,
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
        """`Backend.backward` for elements of `bits` bits."""
        kernels = library(bits)
        I, H, D, N = layer.input_size, layer.hidden_size, layer.num_directions, rows.N
        weights = [w.contiguous() for w in weights]
        grad_y = None if grad_y is None else grad_y.contiguous()
        grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
        shape = _Shape(kernels, bits, I, H)
        cut = plan(layer, rows, most_threads(torch.get_num_threads()), shape.wide_h)
        count = layer.weights_per_direction
        wanted = [any(needs.weights[i::count]) for i in range(count)] + [False, False]
        grad_x = x.new_empty((N, I)) if needs.x else None
        grad_h0 = h0.new_empty(h0.shape) if needs.h0 else None
        grad_w_ih = _result(x, (D, H, I), wanted[0], N)
        grad_w_hh = _result(x, (D, H, H), wanted[1], N)
        grad_b = _result(x, (D, H), wanted[2] or wanted[3], N)
        dz = x.new_empty((D, N, H))
        before = torch.empty((D, N) if wanted[1] else 0, dtype=torch.int64)
        scratch = x.new_empty(D * shape.backward_bytes // shape.size)
        reduction = x.new_empty(cut.threads * shape.reduction_bytes // shape.size)
        sync = torch.zeros(_SYNC_WORDS, dtype=torch.int64)
        arguments = BackwardArguments(
            *_problem(layer, rows, cut),
            x=x.data_ptr(),
            h0=h0.data_ptr(),
            y=y.data_ptr(),
            **_weight_addresses(layer, weights, biases=False),
            grad_y=_address(grad_y),
            grad_h_n=_address(grad_h_n),
            dz=dz.data_ptr(),
            grad_x=_address(grad_x),
            grad_h0=_address(grad_h0),
            grad_w_ih=_address(grad_w_ih),
            grad_w_hh=_address(grad_w_hh),
            grad_b=_address(grad_b),
            scratch=scratch.data_ptr(),
            packed_column=shape.packed_column,
            packed=shape.backward_bytes,
            before=before.data_ptr() if wanted[1] else 0,
            reduction=reduction.data_ptr(),
            reduction_size=shape.reduction_bytes,
            sync=sync.data_ptr(),
        )
        kernels.backward(arguments, cut.threads)
        grads = []
        for d in range(D):
            each = (grad_w_ih, grad_w_hh, grad_b, grad_b)[:count]
            for i, grad in enumerate(each):
                needed = grad is not None and needs.weights[d * count + i]
                grads.append(grad[d].clone() if i == 3 and needed else grad[d] if needed else None)
        return LayerGrads(grad_x, grad_h0, tuple(grads))


class _Shape:
    """Sizes of packed weights, in the units that the kernels expect."""

    def __init__(self, kernels: Library, bits: int, I: int, H: int) -> None:
        self.size = bits // 8
        lanes = kernels.isa.lanes(self.size)
        vector = kernels.isa.vector_bytes
        self.wide_i, self.wide_h = -(-I // lanes), -(-H // lanes)
        self.packed_inputs = self.wide_i * lanes * vector
        self.packed_row = self.packed_inputs + self.wide_h * lanes * vector
        self.forward_bytes = self.wide_h * (self.packed_row + vector)
        self.packed_column = H * vector
        zeros = max(self.wide_i, self.wide_h) * vector
        self.backward_bytes = (self.wide_h + self.wide_i) * self.packed_column + zeros
        tile_rows, widest = kernels.isa.row_tiles[0]
        dz_block = -(-H // tile_rows) * tile_rows * _REDUCTION_ROWS * self.size
        self.reduction_bytes = dz_block + (_REDUCTION_ROWS + tile_rows) * widest * vector


def _problem(layer: LayerSpec, rows: Rows, cut: Plan) -> tuple[int, ...]:
    """The arguments that both kernels begin with."""
    sizes = 0 if rows.batch_sizes is None else rows.batch_sizes.data_ptr()
    return (
        *(rows.T, rows.B, rows.N, layer.input_size, layer.hidden_size, layer.num_directions),
        *(_CELLS[layer.cell], sizes, cut.slices, cut.slice_rows, cut.parts),
    )


def _weight_addresses(
    layer: LayerSpec, weights: Sequence[Tensor], *, biases: bool
) -> dict[str, int]:
    names = ("w_ih", "w_hh", "b_ih", "b_hh")[: 4 if biases else 2]
    count = layer.weights_per_direction
    return {
        f"{name}_{d}": weights[d * count + i].data_ptr()
        if i < count and d < layer.num_directions
        else 0
        for d in range(2)
        for i, name in enumerate(names)
    }


def _result(like: Tensor, shape: tuple[int, ...], wanted: bool, rows: int) -> Tensor | None:
    """Room for a gradient that is wanted; zeros where there are no rows to sum."""
    if not wanted:
        return None
    return like.new_empty(shape) if rows else like.new_zeros(shape)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
