"""Runs a layer so that the gradient of every state can be computed.

A layer of an Elman cell runs on a backend. A backward pass computes dL/dz_t, the gradients of the
pre-activations z_t, but returns only their sums. The probe adds zeros to the pre-activations as an
additional input: the gradient of this input is dL/dz_t. With the gradient dL/dy_t from outside the
layer follows

    dL/dh_t = dL/dy_t + dL/dz_{t+1} W_hh        (+ dL/dh_n at a sequence's last step)

In other cells a gradient reaches the state before by more ways than W_hh. Their layers run on the
reference, in whose graph every state of every step is a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import Fallback
from rnnjit.execution.autograd import run_layer
from rnnjit.recurrence.rows import indices_before, offsets
from rnnjit.reference import layer_steps, split_weights
from rnnjit.spec import LayerSpec, Rows


class GradientProbe(ABC):
    """One layer of one call, with the tensors whose gradients `norms` needs.

    Attributes:
        layer: the configuration of the layer.
        rows: how its rows are laid over time.
        weights: the weights of the layer, in nn.RNN's flat order.
        tensors: (after `run`) the tensors whose gradients `norms` needs.
    """

    tensors: tuple[Tensor, ...]

    def __init__(self, layer: LayerSpec, rows: Rows, weights: Sequence[Tensor]) -> None:
        self.layer, self.rows, self.weights = layer, rows, weights

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the layer's states."""
        return tuple(self.layer.cell.states)

    @abstractmethod
    def run(
        self, backend: Backend, x: Tensor, hx: States, last: bool, fallback: Fallback
    ) -> tuple[Tensor, States]:
        """Run the layer as `run_layer` does."""

    @abstractmethod
    def norms(self, grads: Sequence[Tensor]) -> States:
        """For each state the norm of its gradient over the batch and the features, `[D, T]`.

        Args:
            grads: the gradients of `tensors`.
        """


def probe_of(layer: LayerSpec, rows: Rows, weights: Sequence[Tensor]) -> GradientProbe:
    """The probe for a layer; the arguments are its attributes."""
    kind = ElmanProbe if layer.cell.is_elman else StepProbe
    return kind(layer, rows, weights)


class ElmanProbe(GradientProbe):
    """A layer of an Elman cell on a backend.

    Its `tensors` are the zeros that are added to the pre-activations and y, both `[N, D*H]` or
    `[T, B, D*H]`, and h_n `[D, B, H]`.
    """

    def run(
        self, backend: Backend, x: Tensor, hx: States, last: bool, fallback: Fallback
    ) -> tuple[Tensor, States]:
        """Run the layer with the zeros concatenated to its input."""
        D, H = self.layer.num_directions, self.layer.hidden_size
        zeros = x.new_zeros((*x.shape[:-1], D * H)).requires_grad_()
        wide = self.layer.input_size + D * H
        layer = LayerSpec(self.layer.cell, wide, H, D, self.layer.bias)
        weights: list[Tensor] = []
        for d in range(D):
            count = self.layer.weights_per_direction
            w_ih, *others = self.weights[d * count : (d + 1) * count]
            through = torch.zeros(H, D * H, dtype=x.dtype, device=x.device)
            through[:, d * H : (d + 1) * H] = torch.eye(H, dtype=x.dtype, device=x.device)
            weights += [torch.cat([w_ih, through], 1), *others]
        x = torch.cat([x, zeros], x.dim() - 1)
        given = (backend, layer, self.rows, x, hx, weights, True, last, fallback)
        y, (h_n,) = run_layer(*given)
        self.tensors = zeros, y, h_n
        return y, (h_n,)

    def norms(self, grads: Sequence[Tensor]) -> States:
        """See `GradientProbe.norms`; the gradient of y is only that from outside the layer."""
        dz, grad_y, grad_h_n = grads
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
        return (torch.stack(found),)


class StepProbe(GradientProbe):
    """A layer of any cell on the reference.

    Its `tensors` are the states: direction by direction, step by step, state by state.
    """

    def run(
        self, backend: Backend, x: Tensor, hx: States, last: bool, fallback: Fallback
    ) -> tuple[Tensor, States]:
        """Run the layer step by step, whatever the backend."""
        flat = x.reshape(self.rows.N, x.shape[-1])
        # The states must be in the graph even if nothing else needs a gradient.
        hx = tuple([each if each.requires_grad else each.detach().requires_grad_() for each in hx])
        y, h_n, directions = layer_steps(self.layer, self.rows, flat, hx, self.weights)
        self.tensors = tuple([state for steps in directions for step in steps for state in step])
        return y, h_n

    def norms(self, grads: Sequence[Tensor]) -> States:
        """See `GradientProbe.norms`."""
        D, count = self.layer.num_directions, len(self.layer.cell.states)
        norms = torch.stack([torch.linalg.vector_norm(grad) for grad in grads])
        return tuple(norms.view(D, self.rows.T, count).unbind(2))


def _ends(rows: Rows, starts: Tensor, direction: int) -> Tensor:
    """The row of each sequence's last state in a direction, `[B]`."""
    sequences = torch.arange(rows.B, dtype=torch.int64, device=starts.device)
    if direction == 1:
        return sequences
    lengths = (starts.diff()[:, None] > sequences).sum(0)
    return starts[lengths - 1] + sequences
