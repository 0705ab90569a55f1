"""The autograd function for eager mode: one layer on one backend, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.dispatch.choice import special_tensor
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.execution.validate_backend import check_grads, check_output, check_untouched
from rnnjit.reference import layer_backward
from rnnjit.runtime.openmp import FORK, one_thread
from rnnjit.runtime.torch_private import legacy_batched, transforming, versions
from rnnjit.spec import LayerSpec, Rows


def run_layer(
    backend: Backend,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    needs_grad: bool,
    last: bool,
    fallback: Fallback = RAISE,
) -> tuple[Tensor, States]:
    """Run one layer on `backend`, recorded for autograd if a gradient is needed.

    Args:
        backend: computes the layer.
        layer: the configuration of the layer.
        rows: how the rows of `x` are laid over time.
        x: `[N, I]`, or `[T, B, I]` for a dense batch.
        hx: each state `[D, B, P or H]`.
        weights: the weights of the layer, in nn.RNN's flat order.
        needs_grad: whether a backward pass may follow.
        last: whether the user gets y, and not only the next layer.
        fallback: the policy if the backward pass raises.

    Returns:
        y `[N, D*P]` and h_n, each state `[D, B, P or H]`. If `x` is 3-D and the call is recorded, y
        is `[T, B, D*P]`, since autograd would record every reshape outside as a further node.

    Raises:
        BackendError: the backend broke its contract.
    """
    if backend.differentiable or not needs_grad:
        flat = _flat(x)
        output = backend.forward(layer, rows, flat, hx, weights, needs_grad)
        check_output(backend, layer, rows, flat, output)
        return output.y, output.h_n
    apply: Callable[..., tuple[Tensor, ...]] = _RNNLayer.apply
    y, *h_n = apply(backend, layer, rows, last, fallback, x, *hx, *weights)
    return y, tuple(h_n)


class _RNNLayer(torch.autograd.Function):
    """Runs forward and backward on the backend; a recorded backward pass runs on the reference.

    The backward pass needs y, but users may overwrite the y that they get (eager allows it), and
    autograd does not notice writes through `y.data` or numpy. So a y that the user gets is saved as
    a copy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        last: bool,
        fallback: Fallback,
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        flat, states = _flat(x), len(layer.cell.states)
        hx, weights = tensors[:states], tensors[states:]
        before = versions(flat, hx)
        output = backend.forward(layer, rows, flat, hx, weights, True)
        check_output(backend, layer, rows, flat, output)
        check_untouched(backend, flat, hx, before)
        ctx.backend, ctx.layer, ctx.rows, ctx.fallback = backend, layer, rows, fallback
        ctx.set_materialize_grads(False)
        kept = output.y.clone() if last else output.y.detach()
        ctx.save_for_backward(x, *tensors, kept, *output.saved)
        if x.dim() == 3:
            # Resized in place, since autograd forbids in-place changes of a view created here.
            output.y.resize_(rows.T, rows.B, output.y.shape[1])
        return output.y, *output.h_n

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, *grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if FORK.forked and torch.get_num_threads() > 1:
            with one_thread():
                return _RNNLayer.backward(ctx, grad_y, *grad_h_n)
        unused, needed = (None,) * 5, ctx.needs_input_grad[5:]
        if grad_y is None and all(grad is None for grad in grad_h_n):
            return (*unused, *(None for _ in needed))
        backend, layer, rows = ctx.backend, ctx.layer, ctx.rows
        states, count = len(layer.cell.states), len(needed) - 1
        x, *rest = ctx.saved_tensors
        hx, weights, (y, *saved) = tuple(rest[:states]), rest[states:count], rest[count:]
        needs = Needs(needed[0], needed[1 : states + 1], needed[states + 1 :])
        given = (layer, rows, _flat(x), hx, weights)
        grad_y = None if grad_y is None else _flat(grad_y)

        def reference() -> LayerGrads:
            return layer_backward(*given, grad_y, grad_h_n, needs)

        def compiled() -> LayerGrads:
            output = LayerOutput(y, hx, tuple(saved))
            grads: LayerGrads = backend.backward(*given, output, grad_y, grad_h_n, needs)
            check_grads(backend, *given[2:], needs, grads)
            return grads

        if _needs_torch(grad_y, *grad_h_n):
            grads = reference()
        else:
            grads = ctx.fallback.or_else(backend, compiled, reference, "the reference")
        grad_x = None if grads.x is None else grads.x.reshape(x.shape)
        return (*unused, grad_x, *grads.hx, *grads.weights)


def _flat(x: Tensor) -> Tensor:
    """Flatten rows `[T, B, ...]` to `[N, ...]`; rows `[N, ...]` stay as they are."""
    if x.dim() == 2:
        return x
    steps, batch, features = x.shape
    return x.reshape(steps * batch, features)


def _needs_torch(*given: Tensor | None) -> bool:
    """Whether this backward pass must run on torch's own operators.

    It must if it is recorded (double backward), vectorised (`is_grads_batched`), or gets a tensor
    subclass.
    """
    if torch.is_grad_enabled() or transforming():
        return True
    grads = [grad for grad in given if grad is not None]
    return any(map(legacy_batched, grads)) or special_tensor(*grads) is not None
