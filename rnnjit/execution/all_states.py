"""Runs a stack so that every state of every step is a result, for calls with `return_states`.

The first state of a step is the layer's output, so that a cell with one state runs as always. The
other states come from `Backend.forward_states`, where the backend has it, and else from the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, States
from rnnjit.dispatch.blame import blame
from rnnjit.dispatch.fallback import Fallback
from rnnjit.errors import BackendError
from rnnjit.execution.autograd import flat, needs_of, needs_torch, run_layer
from rnnjit.execution.stack import run_stack
from rnnjit.execution.validate_backend import check_grads, check_output, check_untouched
from rnnjit.reference import layer_backward, layer_forward_states
from rnnjit.runtime import huge_pages
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import (
    never_traced,
    saved_tensor_hooks,
    versions,
)
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class LayerStates(NamedTuple):
    """The result of one layer.

    Attributes:
        y: `[N, D*P]` or `[T, B, D*P]`.
        h_n: the last value of each state, `[D, B, P or H]`.
        states: each state after every step, in the form of y. The first may be y itself.
    """

    y: Tensor
    h_n: States
    states: States


def run_stack_states(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    training: bool,
    fallback: Fallback,
) -> tuple[Tensor, States, tuple[States, ...]]:
    """Run a stack as `run_stack` does, with every state of every step.

    Args:
        backend: as in `run_stack`.
        spec: as in `run_stack`.
        problem: the properties of the call.
        rows: as in `run_stack`.
        x: as in `run_stack`.
        hx: as in `run_stack`.
        weights: as in `run_stack`.
        training: as in `run_stack`.
        fallback: as in `run_stack`.

    Returns:
        y and h_n as `run_stack` returns them; and for each layer its states after every step, each
        `[N, D*P or D*H]`, before dropout. They may share memory with y, and with what the backward
        pass reads: the user must get copies.

    Raises:
        BackendError: the backend broke its contract, and no other may run the layer.
    """
    found: list[States] = []

    def run(
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        _: bool,
        last: bool,
    ) -> tuple[Tensor, States]:
        def work(by: Backend) -> LayerStates:
            return _run_layer(by, layer, problem, rows, x, hx, weights, last, fallback)

        y, h_n, states = fallback.run(backend, work)
        found.append(tuple([flat(state) for state in states]))
        return y, h_n

    given = (backend, spec, rows, x, hx, weights, training, problem.needs_grad)
    y, h_n = run_stack(*given, run=run)
    return y, h_n, tuple(found)


def why_not_recorded(backend: Backend, spec: RNNSpec, problem: Problem) -> str:
    """Why a backend leaves a call with `return_states` to the reference, or "" if it runs it."""
    cell = spec.cell
    if len(cell.states) == 1 or all(backend.records_states(each, problem) for each in spec.layers):
        return ""
    others = " and ".join(cell.states[1:])
    return f"backend {backend.name!r} does not return {others} of every step"


def _run_layer(
    backend: Backend,
    layer: LayerSpec,
    problem: Problem,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    last: bool,
    fallback: Fallback,
) -> LayerStates:
    """Run one layer, see `run_layer`."""
    recorded = problem.needs_grad
    if len(hx) == 1:
        y, h_n = run_layer(backend, layer, rows, x, hx, weights, recorded, last, fallback)
        return LayerStates(y, h_n, (y,))
    own = flat(x)
    try:
        by_backend = backend.records_states(layer, problem)
    except Exception as error:
        blame(error, recorded=False)
        raise
    if not by_backend:
        output = layer_forward_states(layer, rows, own, hx, weights)
    elif backend.differentiable or not recorded:
        output = _forward_states(backend, layer, rows, own, hx, weights, recorded)
    else:
        needed = tuple([tensor.requires_grad for tensor in (x, *hx, *weights)])
        apply: Callable[..., tuple[Tensor, ...]] = _RecordedStates.apply
        call = _Recorded(backend, layer, rows, last, fallback, needed)
        y, *others = apply(call, x, *hx, *weights)
        return LayerStates(y, tuple(others[: len(hx)]), (y, *others[len(hx) :]))
    return LayerStates(output.y, output.h_n, (output.y, *output.states))


def _forward_states(
    backend: Backend,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    recorded: bool,
) -> LayerOutput:
    """What `Backend.forward_states` returns, checked."""
    try:
        output = backend.forward_states(layer, rows, x, hx, weights, recorded)
        check_states(backend, layer, rows, x, output)
    except Exception as error:
        blame(error, recorded=recorded and backend.differentiable)
        raise
    return output


class _Recorded(NamedTuple):
    """How a recorded call of one layer runs.

    Attributes:
        backend: as in `run_layer`; not differentiable.
        layer: as in `run_layer`.
        rows: as in `run_layer`.
        last: as in `run_layer`.
        fallback: as in `run_layer`.
        needed: for x, each state and each weight, whether its gradient is needed.
    """

    backend: Backend
    layer: LayerSpec
    rows: Rows
    last: bool
    fallback: Fallback
    needed: tuple[bool, ...]

    @property
    def state_count(self) -> int:
        """The number of the cell's states."""
        return len(self.layer.cell.states)

    def forward(self, x: Tensor, tensors: tuple[Tensor, ...]) -> LayerOutput:
        """The backend's forward pass."""
        before = versions(x, tensors)
        given = self.backend, self.layer, self.rows, flat(x)
        output = _forward_states(
            *given, tensors[: self.state_count], tensors[self.state_count :], True
        )
        try:
            check_untouched(self.backend, versions(x, tensors) == before)
        except BackendError as error:
            blame(error, recorded=False)
            raise
        return output

    def backward(
        self, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
    ) -> LayerGrads:
        """The gradients.

        Args:
            inputs: x, the states and the weights.
            kept: y, the states after every step but for the first, and what the backend saved.
            grads: the gradients of y, h_n and these states, or None for zero.
        """
        count, split = self.state_count, self.state_count + 1
        x, hx, weights = flat(inputs[0]), inputs[1:split], inputs[split:]
        given, needs = (self.layer, self.rows, x, hx, weights), needs_of(self.needed, count)
        grad_y = None if grads[0] is None else flat(grads[0])
        grad_h_n, grad_states = grads[1:split], grads[split:]
        output = LayerOutput(kept[0], hx, kept[count:], kept[1:count])

        def reference() -> LayerGrads:
            return layer_backward(*given, grad_y, grad_h_n, needs, grad_states)

        def compiled() -> LayerGrads:
            try:
                found = self.backend.backward_states(
                    *given, output, grad_y, grad_h_n, grad_states, needs
                )
                check_grads(self.backend, x, hx, weights, needs, found)
            except Exception as error:
                blame(error, recorded=False)
                raise
            return found

        if needs_torch(*grads):
            return reference()
        return self.fallback.or_else(self.backend, compiled, reference, "the reference")


class _RecordedStates(torch.autograd.Function):
    """Runs `forward_states` and `backward_states`; a recorded backward pass runs on the reference.

    The user gets copies of the states, and y itself of the last layer, which is saved as a copy.
    """

    @staticmethod
    @never_traced
    def forward(ctx: Any, call: _Recorded, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, h_n, saved, states = call.forward(x, tensors)
        ctx.set_materialize_grads(False)
        kept = (
            huge_pages.clone(y) if call.last else y.detach(),
            *[state.detach() for state in states],
        )
        everything = (x, *tensors, *kept, *saved)
        ctx.call, ctx.facts = call, _Facts(everything)
        ctx.save_for_backward(*everything)
        if y.dim() < x.dim():
            # Resized in place, since autograd forbids in-place changes of a view created here.
            y.resize_(call.rows.T, call.rows.B, y.shape[1])
        return y, *h_n, *states

    @staticmethod
    @never_traced
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if FORK.forked and needs_one_thread():
            with one_thread():
                return _RecordedStates.backward(ctx, *grads)
        call: _Recorded = ctx.call
        inputs = len(call.needed)
        if all(grad is None for grad in grads):
            return (None,) * (1 + inputs)
        found = ctx.facts.checked(ctx.saved_tensors)
        result = call.backward(found[:inputs], found[inputs:], grads)
        grad_x = None if result.x is None else result.x.reshape(found[0].shape)
        return (None, grad_x, *result.hx, *result.weights)


class _Facts:
    """What is known of saved tensors, since kernels get their addresses.

    Autograd notices writes to them, but neither `.data = ...` nor what hooks give back.

    Args:
        saved: the tensors, before they are saved.
    """

    def __init__(self, saved: tuple[Tensor, ...]) -> None:
        self._hooked = saved_tensor_hooks()
        self._facts = [self._of(tensor) for tensor in saved]

    def checked(self, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What autograd gave back; contiguous if it went through hooks.

        Raises:
            RuntimeError: a tensor was given other data, or hooks gave back another kind of tensor.
        """
        for tensor, facts in zip(found, self._facts, strict=True):
            if self._of(tensor) != facts:
                raise RuntimeError(
                    f"a tensor of a layer, now of shape {list(tensor.shape)} and {tensor.dtype}, "
                    "was given other data after the forward pass, and the backward pass needs its "
                    "values: change a copy"
                )
        return tuple([each.contiguous() for each in found]) if self._hooked else found

    def _of(self, tensor: Tensor) -> tuple[Any, ...]:
        address = 0 if self._hooked else tensor.data_ptr()
        return tensor.shape, tensor.dtype, tensor.device, address


def check_states(
    backend: Backend, layer: LayerSpec, rows: Rows, x: Tensor, output: LayerOutput
) -> None:
    """Check what `Backend.forward_states` returned.

    Raises:
        BackendError: it violates the contract.
    """
    check_output(backend, layer, rows, x, output)
    states: Any = output.states
    count, shape = len(layer.state_sizes) - 1, (rows.N, layer.num_directions * layer.hidden_size)
    expected = f"{count} of them, each a contiguous {x.dtype} Tensor {list(shape)} on {x.device}"
    if not isinstance(states, tuple) or len(states) != count:
        got = f"{len(states)}" if isinstance(states, tuple) else type(states).__name__
        raise BackendError(backend.name, "states", expected, got)
    for state in states:
        if not isinstance(state, Tensor):
            raise BackendError(backend.name, "states", expected, f"a {type(state).__name__}")
        alike = state.shape == shape and state.dtype is x.dtype and state.device == x.device
        if not alike or not state.is_contiguous():
            got = f"{state.dtype} {list(state.shape)} of strides {state.stride()}"
            raise BackendError(backend.name, "states", expected, f"{got} on {state.device}")
