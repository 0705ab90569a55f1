"""The autograd node of the eager-mode path: one backend's layer, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerOutput, Needs
from rnnjit.contract import check_grads, check_output, check_untouched, version
from rnnjit.dispatch import special_tensor
from rnnjit.failures import FAILURES, replaceable
from rnnjit.reference import layer_backward
from rnnjit.spec import LayerSpec, Rows
from rnnjit.team import FORK, one_thread


def run_layer(
    backend: Backend,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    needs_grad: bool,
    last: bool,
    rescued: bool = False,
) -> tuple[Tensor, Tensor]:
    """`(y, h_n)` of one layer by `backend`, recorded for autograd where a gradient is needed.

    `x` may be `[T, B, I]` too; where it is recorded y then has that form as well, since each
    reshaping outside would be recorded on its own. `last` says that the caller will see y, and not
    only the layer above; `rescued`, that the reference does a backward pass in which the backend
    raises.
    """
    if backend.differentiable or not needs_grad:
        flat = _flat(x)
        output = backend.forward(layer, rows, flat, h0, weights, needs_grad)
        check_output(backend, layer, rows, flat, output)
        return output.y, output.h_n
    apply: Callable[..., tuple[Tensor, Tensor]] = _RNNLayer.apply
    return apply(backend, layer, rows, last, rescued, x, h0, *weights)


class _RNNLayer(torch.autograd.Function):
    """Calls the backend both ways; a backward pass that is itself recorded uses the reference.

    The backward pass needs y, but eager lets its caller overwrite y before it, be it through
    `y.data` or numpy, which leave no trace. So a y that the caller sees is kept as a copy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        last: bool,
        rescued: bool,
        x: Tensor,
        h0: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        flat = _flat(x)
        before = version(flat, h0)
        output = backend.forward(layer, rows, flat, h0, weights, True)
        check_output(backend, layer, rows, flat, output)
        check_untouched(backend, flat, h0, before)
        ctx.backend, ctx.layer, ctx.rows, ctx.rescued = backend, layer, rows, rescued
        ctx.set_materialize_grads(False)
        kept = output.y.clone() if last else output.y.detach()
        ctx.save_for_backward(x, h0, *weights, kept, *output.saved)
        if x.dim() == 3:
            # Not a view: autograd forbids changing a view that was made in here.
            output.y.resize_(rows.T, rows.B, output.y.shape[1])
        return output.y, output.h_n

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if FORK.forked and torch.get_num_threads() > 1:
            with one_thread():
                return _RNNLayer.backward(ctx, grad_y, grad_h_n)
        unused = (None,) * 5
        if grad_y is None and grad_h_n is None:
            return (*unused, *(None for _ in ctx.needs_input_grad[5:]))
        x, h0, *rest = ctx.saved_tensors
        needs = Needs(ctx.needs_input_grad[5], ctx.needs_input_grad[6], ctx.needs_input_grad[7:])
        count = len(needs.weights)
        weights, (y, *saved) = rest[:count], rest[count:]
        given = (ctx.layer, ctx.rows, _flat(x), h0, weights)
        grad_y = None if grad_y is None else _flat(grad_y)
        if _needs_torch(grad_y, grad_h_n):
            grads = layer_backward(*given, grad_y, grad_h_n, needs)
        else:
            output = LayerOutput(y, h0, tuple(saved))
            try:
                grads = ctx.backend.backward(*given, output, grad_y, grad_h_n, needs)
                check_grads(ctx.backend, *given[2:], needs, grads)
            except Exception as error:
                if not ctx.rescued or not replaceable(error):
                    raise
                grads = layer_backward(*given, grad_y, grad_h_n, needs)
                FAILURES.note(ctx.backend, error, "the reference")
        grad_x = None if grads.x is None else grads.x.reshape(x.shape)
        return (*unused, grad_x, grads.h0, *grads.weights)


def _flat(x: Tensor) -> Tensor:
    """`[N, ...]` of rows that may be `[T, B, ...]`."""
    if x.dim() == 2:
        return x
    steps, batch, features = x.shape
    return x.reshape(steps * batch, features)


def _needs_torch(grad_y: Tensor | None, grad_h_n: Tensor | None) -> bool:
    """Whether only torch's own operators can do this backward pass.

    It may be recorded (double backward), vectorised (`is_grads_batched`) or given a subclass.
    """
    if torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    grads = [grad for grad in (grad_y, grad_h_n) if grad is not None]
    if any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads):
        return True
    return special_tensor(*grads) is not None
