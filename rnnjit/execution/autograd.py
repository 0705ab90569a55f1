"""The autograd function for eager mode: one layer on one backend, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
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
            if output.saved or type(read) is not tuple or len(read) != len(inputs):
                check_kept(backend, output, read, len(inputs))
        except Exception as error:
            blame(error, recorded=False)
            raise
        ctx.backend, ctx.layer, ctx.rows, ctx.fallback = backend, layer, rows, fallback
        ctx.set_materialize_grads(False)
        kept = output.y.clone() if last else output.y.detach()
        which, unread = _division(read)
        given = [inputs[i] for i in which]
        # Hooks may give back anything: what is compared is noted only where there are some.
        if saved_tensor_hooks():
            ctx.expected = [_facts(each) for each in (*given, kept, *output.saved)]
        else:
            ctx.expected = [None if t.is_leaf else (*_facts(t), t.data_ptr()) for t in given]
        ctx.unread = _Unread(unread, tuple([inputs[i] for i in unread]))
        given = [t.detach() if t.is_leaf else t for t in given]
        ctx.save_for_backward(*given, kept, *output.saved)
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
        x, *rest = ctx.unread.beside(_as_saved(ctx.saved_tensors, ctx.expected))
        hx, weights, (y, *saved) = tuple(rest[:states]), rest[states:count], rest[count:]
        needs = Needs(needed[0], needed[1 : states + 1], needed[states + 1 :])
        given = (layer, rows, _flat(x), hx, weights)
        grad_y = None if grad_y is None else _flat(grad_y)

        def reference() -> LayerGrads:
            x_, *others = ctx.unread.originals((x, *hx, *weights), ctx.next_functions)
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


@lru_cache(maxsize=256)
def _division(read: tuple[bool, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The indices of the inputs that a backward pass reads, and those of the others."""
    which = [
        tuple(i for i, reads in enumerate(read) if bool(reads) is each) for each in (True, False)
    ]
    return which[0], which[1]


class _Unread:
    """The inputs of a layer that its backward pass does not read.

    Args:
        indices: their places among x, the states and the weights.
        tensors: the inputs.
    """

    def __init__(self, indices: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
        self._indices, self._tensors = indices, tensors
        self._written = versions(tensors[0], tensors[1:]) if tensors else 0

    def beside(self, saved: list[Tensor]) -> list[Tensor]:
        """All inputs in their order, and what else autograd saved."""
        for index, tensor in zip(self._indices, self._tensors, strict=True):
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
            if not _same_values(original, tensor):
                raise _lost(tensor, "given other data")
            found.append(original)
        own = self._tensors
        if own and versions(own[0], own[1:]) != self._written:
            raise _lost(own[0], "modified by an inplace operation, or another such input was,")
        return found


def _same_values(original: Tensor, saved: Tensor) -> bool:
    """Whether a leaf still has the values that were saved; hooks may have given back a copy."""
    if _facts(original) != _facts(saved):
        return False
    same_memory = original.data_ptr() == saved.data_ptr()
    return same_memory or torch.allclose(original, saved, rtol=0.0, atol=0.0, equal_nan=True)


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _lost(tensor: Tensor, how: str) -> RuntimeError:
    return RuntimeError(
        f"an input of a layer (x, a state or a weight), of shape {list(tensor.shape)}, was {how} "
        "after the forward pass, and the backward pass needs its values: change a copy"
    )


def _as_saved(found: tuple[Tensor, ...], expected: list[tuple[Any, ...] | None]) -> list[Tensor]:
    """The saved tensors, if they are what was saved; contiguous if hooks gave them back.

    Args:
        found: what autograd gave back: the inputs that are read, y and what the backend saved.
        expected: the facts of all of them if there are hooks. Else those of the inputs, with their
            address, and None for aliases, which nobody can change.

    Raises:
        RuntimeError: the user's hooks gave back something else, or an input was given other data.
    """
    tensors = list(found)
    if len(expected) < len(tensors):
        for tensor, facts in zip(tensors, expected, strict=False):
            if facts is not None and (*_facts(tensor), tensor.data_ptr()) != facts:
                raise _lost(tensor, "given other data")
        return tensors
    for tensor, facts in zip(tensors, expected, strict=True):
        if _facts(tensor) != facts and facts is not None:
            shape, dtype, device = facts
            raise RuntimeError(
                f"a hook for saved tensors gave back {tensor.dtype} {list(tensor.shape)} on "
                f"{tensor.device} for {dtype} {list(shape)} on {device}"
            )
    return [tensor.contiguous() for tensor in tensors]


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
