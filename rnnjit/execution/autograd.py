"""The autograd function for eager mode: one layer on one backend, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States, Training
from rnnjit.dispatch.blame import blame
from rnnjit.dispatch.choice import special_tensor
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.execution.validate_backend import (
    check_grads,
    check_kept,
    check_output,
    check_rebuilt,
    check_stack_output,
    check_untouched,
)
from rnnjit.reference import layer_backward
from rnnjit.runtime import huge_pages
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import (
    any_autocast,
    forward_mode,
    legacy_batched,
    never_traced,
    saved_tensor_hooks,
    transforming,
    untransformed_apply,
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
        own = flat(x)
        try:
            carried = hx[-1].dtype
            if carried is not own.dtype and not any_autocast():
                # Another backend may have computed the states, see `Backend.carried_dtype`.
                carried = backend.carried_dtype(own.dtype)
                hx = (hx[0], *[state.to(carried) for state in hx[1:]])
            output = backend.forward(layer, rows, own, hx, weights, needs_grad)
            check_output(backend, layer, rows, own, output, carried)
        except Exception as error:
            blame(error, recorded=needs_grad)
            raise
        return output.y, output.h_n
    needed = tuple([tensor.requires_grad for tensor in (x, *hx, *weights)])
    apply: Callable[..., tuple[Tensor, ...]] = _RNNLayer.apply
    y, *h_n = apply(RecordedLayer(backend, layer, rows, last, fallback, needed), x, *hx, *weights)
    return y, tuple(h_n)


class RecordedLayer:
    """How recorded calls of one layer run that are alike: in shapes, and in what needs a gradient.

    Args:
        backend: as in `run_layer`; not differentiable.
        layer: as in `run_layer`.
        rows: as in `run_layer`.
        last: as in `run_layer`.
        fallback: as in `run_layer`.
        needed: for x, each state and each weight, whether its gradient is needed.

    Attributes:
        needs: `needed` for a backend.
        read: the indices of the inputs that the backward pass reads; known after `forward`.
        unread: those of the others.
        states: the number of states.
        rebuilds: whether the backward pass computes y anew, from what the backend saved.
    """

    __slots__ = (
        *("backend", "fallback", "last", "layer", "needed", "needs", "order", "read", "rebuilds"),
        *("rows", "states", "unread"),
    )

    def __init__(
        self,
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        last: bool,
        fallback: Fallback,
        needed: tuple[bool, ...],
    ) -> None:
        self.backend, self.layer, self.rows = backend, layer, rows
        self.last, self.fallback, self.needed = last, fallback, needed
        self.states = len(layer.cell.states)
        self.needs = needs_of(needed, self.states)
        # The y of an inner layer is kept in any case: it is the input of the next one.
        self.rebuilds = last and backend.rebuilds_output(layer)

    def forward(self, x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> LayerOutput:
        """The backend's forward pass, with y `[N, D*P]` or `[T, B, D*P]`.

        Raises:
            BackendError: the backend broke its contract.
        """
        backend, rows, own, before = self.backend, self.rows, flat(x), versions(x, hx)
        output = backend.forward(self.layer, rows, own, hx, weights, True)
        check_output(backend, self.layer, rows, own, output)
        self._note_reads(output, versions(x, hx) == before)
        return output

    def backward(
        self,
        inputs: tuple[Tensor, ...],
        kept: tuple[Tensor, ...],
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
    ) -> LayerGrads:
        """The backend's backward pass; x, y and their gradients are as x was in `forward`.

        Args:
            inputs: x, the states and the weights.
            kept: y unless it is rebuilt, and what the backend saved.
            grad_y: the gradient of y, or None for zero.
            grad_h_n: the gradients of the last states, or None for zero.

        Raises:
            BackendError: the backend broke its contract.
        """
        x, split = flat(inputs[0]), self.states + 1
        hx, weights = inputs[1:split], inputs[split:]
        y, *saved = self._with_output(kept, x)
        output = LayerOutput(flat(y), hx, tuple(saved))
        grad_y = None if grad_y is None else flat(grad_y)
        grads = self.backend.backward(
            *(self.layer, self.rows, x, hx, weights, output, grad_y, grad_h_n, self.needs)
        )
        check_grads(self.backend, x, hx, weights, self.needs, grads)
        return grads if grads.x is None else grads._replace(x=grads.x.reshape(inputs[0].shape))

    def reference(
        self,
        inputs: tuple[Tensor, ...],
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
    ) -> LayerGrads:
        """As `backward`, by torch's own operators."""
        x, split = inputs[0], self.states + 1
        hx, weights = inputs[1:split], inputs[split:]
        grad_y = None if grad_y is None else flat(grad_y)
        grads = layer_backward(
            *(self.layer, self.rows, flat(x), hx, weights, grad_y, grad_h_n, self.needs)
        )
        return grads if grads.x is None else grads._replace(x=grads.x.reshape(x.shape))

    def _with_output(self, kept: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """y, which has the dtype of x, and what the backend saved.

        Raises:
            BackendError: y is rebuilt, and violates the contract.
        """
        if not self.rebuilds:
            return kept
        y = self.backend.rebuilt_output(self.layer, kept, x.dtype)
        check_rebuilt(self.backend, self.layer, self.rows, x, y)
        return (y, *kept)

    def _note_reads(self, output: LayerOutput, untouched: bool) -> None:
        """Note which inputs the backward pass reads, after the last checks of the forward pass."""
        backend, inputs = self.backend, len(self.needed)
        check_untouched(backend, untouched)
        read = backend.backward_reads(self.layer, self.rows, output, self.needed)
        if output.saved or type(read) is not tuple or len(read) != inputs:
            check_kept(backend, output, read, inputs)
        self.read, self.unread, self.order = _reads(read)


class BoundLayer(RecordedLayer):
    """A layer that a backend runs by functions of its own, see `Backend.training`.

    Only their first results are checked, since later calls are alike.

    Args:
        backend: as in `run_layer`; not differentiable.
        layer: as in `run_layer`, the last of its stack.
        rows: as in `run_layer`, dense.
        fallback: as in `run_layer`.
        needed: for x, each state and each weight, whether its gradient is needed.
        own: the backend's functions.
    """

    __slots__ = ("_checked", "_own", "_own_backward", "_own_forward")

    def __init__(
        self,
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        fallback: Fallback,
        needed: tuple[bool, ...],
        own: Training,
    ) -> None:
        super().__init__(backend, layer, rows, True, fallback, needed)
        self._own_forward, self._own_backward = own
        self._checked = [False, False]

    def forward(self, x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> LayerOutput:
        """See `RecordedLayer.forward`."""
        if self._checked[0]:
            return LayerOutput(*self._own_forward(x, hx, weights))
        before, result = versions(x, hx), self._own_forward(x, hx, weights)
        width = self.layer.num_directions * self.layer.output_size
        check_stack_output(self.backend, (self.rows.T, self.rows.B, width), x, hx, result[:2])
        output = LayerOutput(*result)
        self._note_reads(output, versions(x, hx) == before)
        self._checked[0] = True
        return output

    def backward(
        self,
        inputs: tuple[Tensor, ...],
        kept: tuple[Tensor, ...],
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
    ) -> LayerGrads:
        """See `RecordedLayer.backward`."""
        x, split = inputs[0], self.states + 1
        hx, weights = inputs[1:split], inputs[split:]
        grads = self._own_backward(x, hx, weights, self._with_output(kept, x), grad_y, grad_h_n)
        if not self._checked[1]:
            check_grads(self.backend, x, hx, weights, self.needs, grads)
            self._checked[1] = True
        return grads


class _RNNLayer(torch.autograd.Function):
    """Runs forward and backward on the backend; a recorded backward pass runs on the reference.

    The backward pass needs y, but users may overwrite the y that they get (eager allows it), and
    autograd does not notice writes through `y.data` or numpy. So a y that the user gets is saved as
    a copy, unless the backend rebuilds it from what it saves anyway.

    Autograd checks that nobody has written to a saved tensor. Inputs that the backend does not read
    are not saved, since eager allows writes to them: only the reference reads them. An input that
    is a leaf is saved as an alias, which keeps its memory where `.data = ...` or `.half()` gives
    the leaf another one.
    """

    @staticmethod
    @never_traced
    def forward(ctx: Any, call: RecordedLayer, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        try:
            output = call.forward(x, tensors[: call.states], tensors[call.states :])
        except Exception as error:
            blame(error, recorded=False)
            raise
        ctx.set_materialize_grads(False)
        last, saved = call.last, output.saved
        kept: tuple[Tensor, ...] = ()
        if not call.rebuilds:
            kept = (huge_pages.clone(output.y) if last else output.y.detach(),)
        inputs, given = (x, *tensors), []
        others: list[tuple[int, Tensor]] = []
        for i in call.read:
            tensor = inputs[i]
            if tensor.is_leaf:
                given.append(tensor.detach())
            else:
                others.append((len(given), tensor))
                given.append(tensor)
        unread = tuple([inputs[i] for i in call.unread])
        hooked = saved_tensor_hooks()
        # Hooks may give back anything: what is compared is noted only where there are some.
        if hooked:
            expected = [(i, _facts(each)) for i, each in enumerate((*given, *kept, *saved))]
        else:
            expected = [(i, (*_facts(each), each.data_ptr())) for i, each in others]
        written = versions(unread[0], unread[1:]) if unread else 0
        ctx.layer, ctx.kept = call, (unread, written, expected, hooked)
        ctx.save_for_backward(*given, *kept, *saved)
        if output.y.dim() < x.dim():
            # Resized in place, since autograd forbids in-place changes of a view created here.
            output.y.resize_(call.rows.T, call.rows.B, output.y.shape[1])
        return output.y, *output.h_n

    @staticmethod
    @never_traced
    def backward(
        ctx: Any, grad_y: Tensor | None, *grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if FORK.forked and needs_one_thread():
            with one_thread():
                return _RNNLayer.backward(ctx, grad_y, *grad_h_n)
        call: RecordedLayer = ctx.layer
        if grad_y is None and all(grad is None for grad in grad_h_n):
            return (None,) * (1 + len(call.needed))
        unread, written, expected, hooked = ctx.kept
        found = _unchanged(ctx.saved_tensors, expected, hooked)
        inputs = call.order((*found, *unread))
        kept = found[len(inputs) - len(unread) :]

        def reference() -> LayerGrads:
            originals = _originals(inputs, ctx.next_functions)
            if unread and versions(unread[0], unread[1:]) != written:
                changed = "modified by an inplace operation, or another such input was,"
                raise _lost(unread[0], changed)
            return call.reference(originals, grad_y, grad_h_n)

        if needs_torch(grad_y, *grad_h_n):
            grads = reference()
        else:
            try:
                grads = call.backward(inputs, kept, grad_y, grad_h_n)
            except Exception as error:  # noqa: BLE001 - the policy says whether it propagates
                blame(error, recorded=False)
                grads = _instead(call, error, reference)
        return (None, grads.x, *grads.hx, *grads.weights)


#: `(layer, x, *hx, *weights) -> (y, *h_n)` of a RecordedLayer, for contiguous tensors outside of
#: transforms.
apply_recorded: Callable[..., tuple[Tensor, ...]] = untransformed_apply(_RNNLayer)


@lru_cache(maxsize=256)
def needs_of(needed: tuple[bool, ...], states: int) -> Needs:
    """Which gradients are needed, from those of x, the states and the weights in a row."""
    return Needs(needed[0], needed[1 : states + 1], needed[states + 1 :])


class _Reads(NamedTuple):
    """Which inputs a backward pass reads.

    Attributes:
        read: the indices of these.
        unread: the indices of the others.
        order: takes all inputs, in their order, out of what is saved for the backward pass and then
            the inputs that it does not read.
    """

    read: tuple[int, ...]
    unread: tuple[int, ...]
    order: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@lru_cache(maxsize=256)
def _reads(read: tuple[bool, ...]) -> _Reads:
    which = tuple(i for i, reads in enumerate(read) if reads)
    unread = tuple(i for i, reads in enumerate(read) if not reads)
    places = [
        which.index(i) if i in which else unread.index(i) - len(unread) for i in range(len(read))
    ]
    return _Reads(which, unread, itemgetter(*places))


def _unchanged(
    found: tuple[Tensor, ...], expected: list[tuple[int, tuple[Any, ...]]], hooked: bool
) -> tuple[Tensor, ...]:
    """The saved tensors, if they are what was saved; contiguous if hooks gave them back.

    Args:
        found: what autograd gave back: the inputs that are read, y and what the backend saved.
        expected: the facts of saved tensors by index: of all if there are hooks. Else of the inputs
            to which the user can give other data, with their address.
        hooked: whether there are hooks.

    Raises:
        RuntimeError: the user's hooks gave back something else, or an input was given other data.
    """
    for index, facts in expected:
        tensor = found[index]
        if hooked and _facts(tensor) != facts:
            shape, dtype, device = facts
            raise RuntimeError(
                f"a hook for saved tensors gave back {tensor.dtype} {list(tensor.shape)} on "
                f"{tensor.device} for {dtype} {list(shape)} on {device}"
            )
        if not hooked and (*_facts(tensor), tensor.data_ptr()) != facts:
            raise _lost(tensor, "given other data")
    return tuple([tensor.contiguous() for tensor in found]) if hooked else found


def _originals(inputs: tuple[Tensor, ...], nodes: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The inputs that autograd knows: the leaves instead of their aliases.

    Args:
        inputs: the inputs, as saved.
        nodes: the `next_functions` of the layer's node.

    Raises:
        RuntimeError: somebody has given one of them other data, so that its values are lost.
    """
    found = []
    for tensor, (node, _) in zip(inputs, nodes, strict=True):
        leaf = getattr(node, "variable", None)
        original = tensor if leaf is None else leaf
        if not _same_values(original, tensor):
            raise _lost(tensor, "given other data")
        found.append(original)
    return tuple(found)


def _instead(
    call: RecordedLayer, error: Exception, reference: Callable[[], LayerGrads]
) -> LayerGrads:
    """The gradients by the reference, if the policy allows it after an error of the backend."""

    def failed() -> LayerGrads:
        raise error

    return call.fallback.or_else(call.backend, failed, reference, "the reference")


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


def flat(x: Tensor) -> Tensor:
    """Flatten rows `[T, B, ...]` to `[N, ...]`; rows `[N, ...]` stay as they are."""
    if x.dim() == 2:
        return x
    steps, batch, features = x.shape
    return x.reshape(steps * batch, features)


def needs_torch(*given: Tensor | None) -> bool:
    """Whether this backward pass must run on torch's own operators.

    It must if it is recorded (double backward), vectorised (`is_grads_batched`), or gets a tensor
    subclass or one with a tangent.
    """
    if torch.is_grad_enabled() or transforming() or forward_mode():
        return True
    for grad in given:
        if grad is not None and (legacy_batched(grad) or special_tensor(grad) is not None):
            return True
    return False
