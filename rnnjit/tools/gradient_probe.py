"""Runs a layer of an Elman cell so that the gradient of every state can be computed.

A backward pass computes dL/dz_t, the gradients of the pre-activations z_t, but returns only their
sums. The probe adds zeros to the pre-activations as an additional input: the gradient of this input
is dL/dz_t. With the gradient dL/dy_t from outside the layer follows

    dL/dh_t = dL/dy_t + dL/dz_{t+1} W_hh        (+ dL/dh_n at a sequence's last step)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import Fallback
from rnnjit.execution.autograd import run_layer
from rnnjit.recurrence.rows import indices_before, offsets
from rnnjit.reference import split_weights
from rnnjit.spec import LayerSpec, Rows


class GradientProbe:
    """One layer of one call, with the tensors whose gradients `norms` needs.

    Attributes:
        layer: the configuration of the layer.
        rows: how its rows are laid over time.
        weights: the weights of the layer, in nn.RNN's flat order.
        zeros: `[N, D*H]` or `[T, B, D*H]`, added to the pre-activations.
        y: `[N, D*H]` or `[T, B, D*H]`, the outputs.
        h_n: `[D, B, H]`, the last states.
    """

    zeros: Tensor
    y: Tensor
    h_n: Tensor

    def __init__(self, layer: LayerSpec, rows: Rows, weights: Sequence[Tensor]) -> None:
        self.layer, self.rows, self.weights = layer, rows, weights

    def run(
        self, backend: Backend, x: Tensor, hx: States, last: bool, fallback: Fallback
    ) -> tuple[Tensor, States]:
        """Run the layer as `run_layer` does, with the zeros concatenated to its input."""
        D, H = self.layer.num_directions, self.layer.hidden_size
        self.zeros = x.new_zeros((*x.shape[:-1], D * H)).requires_grad_()
        wide = self.layer.input_size + D * H
        layer = LayerSpec(self.layer.cell, wide, H, D, self.layer.bias)
        weights: list[Tensor] = []
        for d in range(D):
            count = self.layer.weights_per_direction
            w_ih, *others = self.weights[d * count : (d + 1) * count]
            through = torch.zeros(H, D * H, dtype=x.dtype, device=x.device)
            through[:, d * H : (d + 1) * H] = torch.eye(H, dtype=x.dtype, device=x.device)
            weights += [torch.cat([w_ih, through], 1), *others]
        x = torch.cat([x, self.zeros], x.dim() - 1)
        given = (backend, layer, self.rows, x, hx, weights, True, last, fallback)
        self.y, (self.h_n,) = run_layer(*given)
        return self.y, (self.h_n,)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors whose gradients `norms` needs."""
        return self.zeros, self.y, self.h_n

    def norms(self, dz: Tensor, grad_y: Tensor, grad_h_n: Tensor) -> Tensor:
        """The norm of dL/dh_t over the batch and the features, `[D, T]`.

        Args:
            dz: the gradient of `zeros`.
            grad_y: the gradient of `y`, only from outside the layer.
            grad_h_n: the gradient of `h_n`.
        """
        H, starts = self.layer.hidden_size, offsets(self.rows, dz.device)
        dz, grad_y = dz.reshape(self.rows.N, -1), grad_y.reshape(self.rows.N, -1)
        step = torch.repeat_interleave(starts.diff())
        found = []
        for d in range(self.layer.num_directions):
            own, w_hh = slice(d * H, (d + 1) * H), split_weights(self.layer, self.weights, d).w_hh
            before = indices_before(self.rows, starts, d)
            states = dz.new_zeros((self.rows.B + self.rows.N, H))
            states.index_add_(0, before, dz[:, own] @ w_hh.detach())
            grad_h = states[self.rows.B :] + grad_y[:, own]
            grad_h.index_add_(0, _ends(self.rows, starts, d), grad_h_n[d])
            squares = grad_h.new_zeros(self.rows.T).index_add_(0, step, grad_h.square().sum(1))
            found.append(squares.sqrt())
        return torch.stack(found)


def _ends(rows: Rows, starts: Tensor, direction: int) -> Tensor:
    """The row of each sequence's last state in a direction, `[B]`."""
    sequences = torch.arange(rows.B, dtype=torch.int64, device=starts.device)
    if direction == 1:
        return sequences
    lengths = (starts.diff()[:, None] > sequences).sum(0)
    return starts[lengths - 1] + sequences
