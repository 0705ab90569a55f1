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
from rnnjit.execution.validate_backend import (
    check_grads,
    check_kept,
    check_output,
    check_untouched,
)
from rnnjit.reference import layer_backward
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import (
    forward_mode,
    legacy_batched,
    never_traced,
    saved_tensor_hooks,
    transforming,
    versions,
)
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
    are not saved, since eager allows writes to them: only the reference reads them. An input that
    is a leaf is saved as an alias, which keeps its memory where `.data = ...` or `.half()` gives
    the leaf another one.
    """

    @staticmethod
    @never_traced
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
            inputs, needed = (x, *tensors), ctx.needs_input_grad[5:]
            read = backend.backward_reads(layer, rows, output, needed)
            check_kept(backend, output, read, len(inputs))
        except Exception as error:
            blame(error, recorded=False)
            raise
        ctx.backend, ctx.layer, ctx.rows, ctx.fallback = backend, layer, rows, fallback
        ctx.set_materialize_grads(False)
        kept = output.y.clone() if last else output.y.detach()
        ctx.inputs = _Inputs(inputs, read)
        given = [_alias(tensor) for tensor in compress(inputs, read)]
        saved = (*given, kept, *output.saved)
        # Hooks may give back anything: what is compared is noted only where there are some.
        ctx.like = [(t.shape, t.dtype, t.device) for t in saved] if saved_tensor_hooks() else None
        ctx.save_for_backward(*saved)
        if x.dim() == 3:
            # Resized in place, since autograd forbids in-place changes of a view created here.
            output.y.resize_(rows.T, rows.B, output.y.shape[1])
        return output.y, *output.h_n

    @staticmethod
    @never_traced
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
        found = _as_saved(ctx.saved_tensors, ctx.like)
        x, *rest = ctx.inputs.joined(found, hooked=ctx.like is not None)
        hx, weights, (y, *saved) = tuple(rest[:states]), rest[states:count], rest[count:]
        needs = Needs(needed[0], needed[1 : states + 1], needed[states + 1 :])
        given = (layer, rows, _flat(x), hx, weights)
        grad_y = None if grad_y is None else _flat(grad_y)

        def reference() -> LayerGrads:
            x_, *others = ctx.inputs.originals((x, *hx, *weights), ctx.next_functions)
            hx_, weights_ = tuple(others[:states]), others[states:]
            return layer_backward(*(layer, rows, _flat(x_), hx_, weights_, grad_y, grad_h_n, needs))

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


class _Inputs:
    """The inputs of a layer: which of them were saved, and the others with their versions.

    Args:
        inputs: x, the states and the weights.
        read: for each, whether the backward pass reads it.
    """

    def __init__(self, inputs: tuple[Tensor, ...], read: tuple[bool, ...]) -> None:
        self._unread = [
            (index, tensor, versions(tensor, ()))
            for index, tensor in enumerate(inputs)
            if not read[index]
        ]
        # Autograd saves these themselves: `.data = ...` changes what was saved.
        self._no_leaves = [
            (position, tensor.shape, tensor.dtype, tensor.data_ptr())
            for position, tensor in enumerate(compress(inputs, read))
            if not tensor.is_leaf
        ]

    def joined(self, saved: list[Tensor], *, hooked: bool) -> list[Tensor]:
        """All inputs in their order, and what else autograd saved.

        Args:
            saved: what was saved: the inputs that are read, and what else there is.
            hooked: whether the user's hooks may have moved it.

        Raises:
            RuntimeError: somebody has given an input other data.
        """
        for position, *expected in () if hooked else self._no_leaves:
            tensor = saved[position]
            if [tensor.shape, tensor.dtype, tensor.data_ptr()] != expected:
                raise _lost(tensor, "given other data")
        for index, tensor, _ in self._unread:
            saved.insert(index, tensor)
        return saved

    def originals(self, inputs: tuple[Tensor, ...], nodes: tuple[Any, ...]) -> list[Tensor]:
        """The inputs that autograd knows: the leaves instead of their aliases.

        Args:
            inputs: the inputs, as saved.
            nodes: the `next_functions` of the layer's node.

        Raises:
            RuntimeError: somebody has changed one of them, so that its values are lost.
        """
        found = []
        for tensor, (node, _) in zip(inputs, nodes, strict=True):
            leaf = getattr(node, "variable", None)
            original = tensor if leaf is None else leaf
            same = (original.shape, original.dtype) == (tensor.shape, tensor.dtype)
            if not same or original.data_ptr() != tensor.data_ptr():
                raise _lost(tensor, "given other data")
            found.append(original)
        for _, tensor, version in self._unread:
            if versions(tensor, ()) != version:
                raise _lost(tensor, "modified by an inplace operation")
        return found


def _lost(tensor: Tensor, how: str) -> RuntimeError:
    return RuntimeError(
        f"an input of a layer (x, a state or a weight), of shape {list(tensor.shape)}, was {how} "
        "after the forward pass, and the backward pass needs its values: change a copy"
    )


def _alias(tensor: Tensor) -> Tensor:
    """A tensor with the memory and the version of a leaf, which keeps both."""
    return tensor.detach() if tensor.is_leaf else tensor


def _as_saved(found: tuple[Tensor, ...], like: list[tuple[Any, ...]] | None) -> list[Tensor]:
    """The saved tensors, contiguous, if the user's hooks gave back what was saved.

    Raises:
        RuntimeError: one of another shape, dtype or device came back.
    """
    if like is None:
        return list(found)
    for tensor, expected in zip(found, like, strict=True):
        if (tensor.shape, tensor.dtype, tensor.device) != expected:
            shape, dtype, device = expected
            raise RuntimeError(
                f"a hook for saved tensors gave back {tensor.dtype} {list(tensor.shape)} on "
                f"{tensor.device} for {dtype} {list(shape)} on {device}"
            )
    return [tensor.contiguous() for tensor in found]


def _flat(x: Tensor) -> Tensor:
    """Flatten rows `[T, B, ...]` to `[N, ...]`; rows `[N, ...]` stay as they are."""
    if x.dim() == 2:
        return x
    steps, batch, features = x.shape
    return x.reshape(steps * batch, features)


def _needs_torch(*given: Tensor | None) -> bool:
    """Whether this backward pass must run on torch's own operators.

    It must if it is recorded (double backward), vectorised (`is_grads_batched`), or gets a tensor
    subclass or one with a tangent.
    """
    if torch.is_grad_enabled() or transforming() or forward_mode():
        return True
    grads = [grad for grad in given if grad is not None]
    return any(map(legacy_batched, grads)) or special_tensor(*grads) is not None
