"""A layer as GEMMs over all rows around one recurrence.

    forward    Z = X W_ih^T + b        out, s_t = step(z_t + W_hh h_{t-1}, s_{t-1}),  h_t = W_hr out
    backward   dz_t, g_{t-1} = backward(g_t + grad_y_t, ...),   g_{t-1} += dz_t W_hh
               dX = dZ W_ih   dW_ih = dZ^T X   dW_hh = dZ^T H_before   db = sum_n dz_n
               dW_hr = dH^T OUT

A `Recurrence` computes the first lines step by step; the other products are one GEMM each, in the
precision that torch is set to for matmul (TF32 only if allowed). Without a projection, W_hr, h_t is
out. For an Elman cell, Z and y share memory. The columns of the directions are adjacent, so that Z
and dX are one GEMM for both directions. A gate whose zx and zh the cell uses separately has one
gradient for each: that of zx is for x, W_ih and b_ih, that of zh for h, W_hh and b_hh. A cell
without a recurrent product uses no zh: W_hh is empty, and b_hh has no effect.

X are the first I columns of the layer's x; the others are row inputs, whose gradients the
recurrence writes to the same columns of the gradient of x. The gradient of a parameter is the sum
of its gradients over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerGrads, LayerOutput, Needs, States
from rnnjit.recurrence.base import Backward, Forward, Recurrence
from rnnjit.recurrence.rows import offsets
from rnnjit.recurrence.weight_grads import gradients_of, of_inputs, weight_grads
from rnnjit.recurrence.weights import by_kind
from rnnjit.spec import LayerSpec, Rows


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
    def of(layer: LayerSpec, output: LayerOutput) -> Saved:
        """From the result of `layer_forward`, which has the states apart if they are recorded."""
        saved = Saved.split(layer, output.saved)
        return saved._replace(states=output.states) if output.states else saved

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
    record: bool = False,
) -> LayerOutput:
    """`Backend.forward` by a recurrence, or `Backend.forward_states` if `record` is True.

    It takes cells that `why_not_cell` accepts and, with a projection, `why_not_projected`.
    """
    cell, D, I = layer.cell, layer.num_directions, layer.input_size
    own = by_kind(layer, weights)
    projection, of_x = _beside(own.w_ih).t(), x[:, :I] if cell.row_inputs else x
    z = torch.addmm(_beside(own.bias), of_x, projection) if own.bias else of_x @ projection
    in_place = cell.is_elman and not layer.proj_size
    y = z if in_place else z.new_empty((rows.N, D * layer.output_size))
    saved = Saved((), (), None)
    if keep or record:
        kept = [z.new_empty((rows.N, D * layer.hidden_size)) for _ in range(Saved.count(layer))]
        saved = Saved.split(layer, kept)
    h_n = tuple([torch.empty_like(state) for state in hx])
    given = (own.w_hh, own.b_hh, own.w_hr, own.parameters, _row_inputs(layer, x), hx)
    recurrence.forward(Forward(layer, rows, _starts(rows, x), *given, z, y, *saved, h_n))
    if record:
        return LayerOutput(y, h_n, saved._replace(states=()).tensors if keep else (), saved.states)
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
    grad_states: tuple[Tensor | None, ...] = (),
) -> LayerGrads:
    """`Backend.backward` by a recurrence; `output` is the result of `layer_forward`.

    With `grad_states` it is `Backend.backward_states`.
    """
    own, recorded = by_kind(layer, weights), any(grad is not None for grad in grad_states)
    y, saved = output.y, Saved.of(layer, output)
    D, H, A = layer.num_directions, layer.hidden_size, len(layer.cell.accumulators)
    dz, grad_hx = y.new_empty((rows.N, D * A * H)), tuple(map(torch.empty_like, hx))
    dh = torch.empty_like(y) if layer.proj_size else None
    grad_x = _grad_x(layer, dz) if needs.x and layer.cell.row_inputs else None
    call = Backward(
        *(layer, rows, _starts(rows, x), own.w_hh, own.w_hr, own.parameters, _row_inputs(layer, x)),
        *(hx, y, *saved, None if grad_y is None else grad_y.contiguous()),
        *(_contiguous(grad_h_n), _contiguous(grad_states if recorded else ()), dz, dh),
        *(_grad_parameters(layer, dz, needs), _row_inputs(layer, grad_x), grad_hx),
    )
    recurrence.backward(call)
    if needs.x:
        dz_x, w_ih = of_inputs(layer, dz, range(D)), _beside(own.w_ih)
        if grad_x is None:
            grad_x = dz_x @ w_ih
        elif layer.input_size:
            torch.mm(dz_x, w_ih, out=grad_x[:, : layer.input_size])
    wanted = zip(grad_hx, needs.hx, strict=True)
    return LayerGrads(
        grad_x,
        tuple(grad if need else None for grad, need in wanted),
        weight_grads(call, x, needs.weights),
    )


def _grad_parameters(layer: LayerSpec, like: Tensor, needs: Needs) -> Tensor | None:
    """Memory for `Backward.grad_parameters`."""
    count, per_direction = len(layer.cell.parameters), layer.weights_per_direction
    needed = any(
        needs.weights[(d + 1) * per_direction - count + k]
        for d in range(layer.num_directions)
        for k, has_one in enumerate(gradients_of(layer.cell, "parameters"))
        if has_one
    )
    columns = layer.num_directions * count * layer.hidden_size
    return like.new_empty((len(like), columns)) if needed else None


def _grad_x(layer: LayerSpec, like: Tensor) -> Tensor:
    """Memory for the gradient of x, with zeros for the row inputs that have none."""
    found, H = like.new_empty((len(like), layer.features)), layer.hidden_size
    reached = gradients_of(layer.cell, "row_inputs") * layer.num_directions
    for k, has_one in enumerate(reached):
        if not has_one:
            found[:, layer.input_size + k * H :][:, :H].zero_()
    return found


def _row_inputs(layer: LayerSpec, x: Tensor | None) -> Tensor | None:
    """The row inputs among the columns of x, or their gradients among those of its gradient."""
    return x[:, layer.input_size :] if x is not None and layer.cell.row_inputs else None


def _contiguous(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if grad is None else grad.contiguous() for grad in grads)


def _starts(rows: Rows, x: Tensor) -> Tensor | None:
    """The `offsets` of packed rows; None for a dense batch, which does not need them."""
    return None if rows.batch_sizes is None else offsets(rows, x.device)


def _beside(parts: list[Tensor]) -> Tensor:
    """Concatenate the tensors of the directions; no copy if there is one direction."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
