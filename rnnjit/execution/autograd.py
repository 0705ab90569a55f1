"""The autograd function for eager mode: one layer on one backend, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.dispatch.blame import blame
from rnnjit.dispatch.choice import special_tensor
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.execution.validate_backend import check_grads, check_output, check_untouched
from rnnjit.reference import layer_backward
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
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
        try:
            output = backend.forward(layer, rows, flat, hx, weights, needs_grad)
            check_output(backend, layer, rows, flat, output)
        except Exception as error:
            blame(error, recorded=needs_grad)
            raise
        return output.y, output.h_n
    apply: Callable[..., tuple[Tensor, ...]] = _RNNLayer.apply
    y, *h_n = apply(backend, layer, rows, last, fallback, x, *hx, *weights)
    return y, tuple(h_n)


class _RNNLayer(torch.autograd.Function):
    """Runs forward and backward on the backend; a recorded backward pass runs on the reference.

    The backward pass needs y, but users may overwrite the y that they get (eager allows it), and
    autograd does not notice writes through `y.data` or numpy. So a y that the user gets is saved as
    a copy.

    Autograd checks that nobody has written to a saved tensor. Inputs that the backend does not read
    are not saved, since eager allows writes to them: only the reference reads them.
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
        try:
            output = backend.forward(layer, rows, flat, hx, weights, True)
            check_output(backend, layer, rows, flat, output)
            check_untouched(backend, flat, hx, before)
        except Exception as error:
            blame(error, recorded=False)
            raise
        ctx.backend, ctx.layer, ctx.rows, ctx.fallback = backend, layer, rows, fallback
        ctx.set_materialize_grads(False)
        kept = output.y.clone() if last else output.y.detach()
        inputs, needed = (x, *tensors), ctx.needs_input_grad[5:]
        read = backend.backward_reads(layer, rows, output, needed)
        ctx.unread = _Unread(inputs, read)
        ctx.save_for_backward(*compress(inputs, read), kept, *output.saved)
        if x.dim() == 3:
            # Resized in place, since autograd forbids in-place changes of a view created here.
            output.y.resize_(rows.T, rows.B, output.y.shape[1])
        return output.y, *output.h_n

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, *grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if FORK.forked and needs_one_thread():
            with one_thread():
                return _RNNLayer.backward(ctx, grad_y, *grad_h_n)
        unused, needed = (None,) * 5, ctx.needs_input_grad[5:]
        if grad_y is None and all(grad is None for grad in grad_h_n):
            return (*unused, *(None for _ in needed))
        backend, layer, rows = ctx.backend, ctx.layer, ctx.rows
        states, count = len(layer.cell.states), len(needed) - 1
        x, *rest = ctx.unread.joined(ctx.saved_tensors)
        hx, weights, (y, *saved) = tuple(rest[:states]), rest[states:count], rest[count:]
        needs = Needs(needed[0], needed[1 : states + 1], needed[states + 1 :])
        given = (layer, rows, _flat(x), hx, weights)
        grad_y = None if grad_y is None else _flat(grad_y)

        def reference() -> LayerGrads:
            ctx.unread.check()
            return layer_backward(*given, grad_y, grad_h_n, needs)

        def compiled() -> LayerGrads:
            output = LayerOutput(y, hx, tuple(saved))
            try:
                grads: LayerGrads = backend.backward(*given, output, grad_y, grad_h_n, needs)
                check_grads(backend, *given[2:], needs, grads)
            except Exception as error:
                blame(error, recorded=False)
                raise
            return grads

        if _needs_torch(grad_y, *grad_h_n):
            grads = reference()
        else:
            grads = ctx.fallback.or_else(backend, compiled, reference, "the reference")
        grad_x = None if grads.x is None else grads.x.reshape(x.shape)
        return (*unused, grad_x, *grads.hx, *grads.weights)


class _Unread:
    """The inputs of a layer that its backward pass does not read, and their versions.

    Args:
        inputs: x, the states and the weights.
        read: for each, whether the backward pass reads it.
    """

    def __init__(self, inputs: tuple[Tensor, ...], read: tuple[bool, ...]) -> None:
        self._read = read
        self._held = [
            (index, tensor, versions(tensor, ()))
            for index, tensor in enumerate(inputs)
            if not read[index]
        ]

    def joined(self, saved: tuple[Tensor, ...]) -> list[Tensor]:
        """All inputs in their order, and what else autograd saved."""
        found = list(saved)
        for index, tensor, _ in self._held:
            found.insert(index, tensor)
        return found

    def check(self) -> None:
        """Raise a RuntimeError if somebody has written to one of them: the values are lost."""
        for index, tensor, version in self._held:
            if versions(tensor, ()) != version:
                raise RuntimeError(
                    f"input {index} of a layer (x, the states, then the weights), of shape "
                    f"{list(tensor.shape)}, was modified by an inplace operation after the forward "
                    "pass, and a second derivative needs its value: modify a copy"
                )


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
