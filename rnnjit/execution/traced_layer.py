"""What the operators of `rnnjit.execution.torch_ops` do when a graph runs.

The backend is chosen here, for the actual sizes. Sequences with resets are cut here too, so that
the graph only knows the sizes of the whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.dispatch.blame import blame
from rnnjit.dispatch.choice import choose_for_sizes, fallback_for, kind_of
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.dispatch.memory import Memory
from rnnjit.dispatch.registry import by_key
from rnnjit.execution.all_states import check_states
from rnnjit.execution.stretches import (
    Stretches,
    gradient_of_hx,
    gradient_of_last,
    gradient_of_start,
    last_states,
    states_before,
    stretches,
)
from rnnjit.execution.validate_backend import check_grads, check_output
from rnnjit.reference import layer_backward, layer_forward_states
from rnnjit.runtime.torch_private import autograd_allowed
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

# Backends whose forward pass saves more than y. A graph does not hold it, so they rerun forward.
_SAVING: set[str] = set()


class TracedLayer(NamedTuple):
    """The arguments of an operator.

    Attributes:
        layer: the configuration of the layer.
        key: key of the backend that the user asked for, see `key_of`.
        x: `[N, I]`.
        rows: how the rows are laid over time.
        hx: each state `[D, B, P or H]`.
        weights: the weights of every direction, in nn.RNN's order.
        reset: boolean `[T, B]` where sequences start anew, or None.
        reset_to: what a reset puts in the place of each state: `[T, B, D, P or H]` or
            `[D, P or H]`; empty for zeros.
    """

    layer: LayerSpec
    key: str
    x: Tensor
    rows: Rows
    hx: States
    weights: Sequence[Tensor]
    reset: Tensor | None
    reset_to: States


class _Laid(NamedTuple):
    """A call as a backend gets it.

    Attributes:
        layer: as in `TracedLayer`.
        rows: as in `TracedLayer`, or those of the segments between resets.
        x: the rows, contiguous.
        hx: the states that they start from, contiguous.
        weights: as in `TracedLayer`.
        parts: the segments, or None if nothing is reset.
    """

    layer: LayerSpec
    rows: Rows
    x: Tensor
    hx: States
    weights: Sequence[Tensor]
    parts: Stretches | None

    def gathered(self, rows: Tensor | None) -> Tensor | None:
        """Rows `[N, F]` of the whole, or None, in the order of the segments."""
        return rows if rows is None or self.parts is None else self.parts.packed(rows)

    def scattered(self, rows: Tensor) -> Tensor:
        """Rows `[N, F]` of the segments in the order of the whole."""
        return rows if self.parts is None else self.parts.dense(rows)


class _Chosen(NamedTuple):
    """The backend chosen for a call, and the policy if it raises."""

    backend: Backend
    fallback: Fallback


#: By the key of what the user asked for, and what a choice depends on.
_CHOICES: Memory[tuple[Hashable, ...], _Chosen] = Memory(512)


def run_forward(call: TracedLayer, needs_grad: bool, record: bool) -> list[Tensor]:
    """Compute a layer.

    Args:
        call: the layer and its arguments.
        needs_grad: whether a backward pass may follow.
        record: whether to return every state of every step.

    Returns:
        y `[N, D*P]`, each state of h_n `[D, B, P or H]` and, with `record`, each state after the
        first, `[N, D*H]`, all contiguous.

    Raises:
        UnsupportedError: the backend that the user named declines the call.
        BackendError: the backend broke its contract, and no other may run the call.
    """
    laid = _lay_out(call)
    problem, chosen = _choice(call, laid, needs_grad)
    record = record and len(laid.hx) > 1

    def run(by: Backend) -> LayerOutput:
        try:
            with torch.no_grad():
                output = _forward(by, laid, problem, needs_grad, record)
        except Exception as error:
            blame(error, recorded=False)
            raise
        if any(tensor.numel() for tensor in output.saved):
            _SAVING.add(by.name)
        return output

    y, h_n, _, states = chosen.fallback.run(chosen.backend, run)
    found = [laid.scattered(y), *h_n, *[laid.scattered(state) for state in states]]
    if laid.parts is not None:
        for index, state in enumerate(h_n, 1):
            found[index] = last_states(laid.parts, call.layer.num_directions, state)
    return [tensor.contiguous() for tensor in found]


def run_backward(
    call: TracedLayer,
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    given: Sequence[bool],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Compute the gradients of a layer.

    Args:
        call: the layer and its arguments.
        outputs: what `run_forward` returned.
        grads: the gradients of those outputs that have one.
        given: for each output, whether it has a gradient.
        needs: whether to compute the gradient of x, of each state of hx, of each state of
            `reset_to`, and of each weight.

    Returns:
        The gradients that are needed, in the order of `needs`; none shares memory with an input.
    """
    laid = _lay_out(call)
    problem, (by, fallback) = _choice(call, laid, True)
    count, split = len(call.hx), 1 + len(call.hx)
    left = iter(grads)
    of_y, *others = (next(left) if present else None for present in given)
    of_h_n, of_states = others[:count], tuple([laid.gathered(grad) for grad in others[count:]])
    if laid.parts is not None:
        parts = laid.parts
        of_h_n = [None if grad is None else gradient_of_last(parts, grad) for grad in of_h_n]
    y, *states = (laid.gathered(rows) for rows in (outputs[0], *outputs[split:]))
    needs_hx, first = needs[1:split], split + len(call.reset_to)
    needs_to = needs[split:first]
    wanted = Needs(needs[0], _either(needs_hx, needs_to), tuple(needs[first:]))
    arguments = (laid.layer, laid.rows, laid.x, laid.hx, laid.weights)
    of_outputs = (laid.gathered(of_y), tuple(of_h_n))
    recorded = any(grad is not None for grad in of_states)

    def reference() -> LayerGrads:
        return layer_backward(*arguments, *of_outputs, wanted, of_states if recorded else ())

    def compiled() -> LayerGrads:
        if by.differentiable:
            return reference()
        try:
            if recorded and not by.records_states(call.layer, problem):
                return reference()
            return own()
        except Exception as error:
            blame(error, recorded=False)
            raise

    def own() -> LayerGrads:
        assert y is not None
        output = LayerOutput(
            y, laid.hx, (), tuple([state for state in states if state is not None])
        )
        if by.name in _SAVING:
            output = _forward(by, laid, problem, True, recorded)
        if recorded:
            found = by.backward_states(*arguments, output, *of_outputs, of_states, wanted)
        else:
            found = by.backward(*arguments, output._replace(states=()), *of_outputs, wanted)
        check_grads(by, laid.x, laid.hx, laid.weights, wanted, found)
        return found

    # Inside an operator torch disables autograd, but a backend may use it in its backward pass.
    with torch.no_grad(), autograd_allowed(required=by.differentiable):
        policy = RAISE if by.differentiable else fallback
        result = policy.or_else(by, compiled, reference, "the reference")
    with torch.no_grad():
        found = _of_the_whole(call, laid, result, needs_hx, needs_to)
    inputs = [call.x, *call.hx, *call.reset_to, *call.weights]
    return _apart(
        [
            torch.zeros_like(of) if grad is None else grad  # no path leads to what has no gradient
            for of, grad, need in zip(inputs, found, needs, strict=True)
            if need
        ],
        [*inputs, *outputs, *grads],
    )


def _forward(by: Backend, laid: _Laid, problem: Problem, keep: bool, record: bool) -> LayerOutput:
    """The forward pass by a backend, checked; with `record` by the reference where it must be."""
    layer, rows, x, hx, weights, _ = laid
    if not record:
        output = by.forward(layer, rows, x, hx, weights, keep)
        check_output(by, layer, rows, x, output)
    elif by.records_states(layer, problem):
        output = by.forward_states(layer, rows, x, hx, weights, keep)
        check_states(by, layer, rows, x, output)
    else:
        output = layer_forward_states(layer, rows, x, hx, weights)
    return output


def _lay_out(call: TracedLayer) -> _Laid:
    """Cut a call where it is reset, if anywhere."""
    layer, _, x, rows, hx, weights, reset, reset_to = call
    if reset is None or not reset.any():
        states = tuple([state.contiguous() for state in hx])
        return _Laid(layer, rows, x.contiguous(), states, weights, None)
    parts = stretches(reset)
    starts = tuple([start.unsqueeze(0) for start in reset_to]) or None
    states = states_before(parts, layer.num_directions, hx, starts)
    sizes = parts.batch_sizes
    rows = Rows(len(sizes), len(parts.sequence), rows.N, sizes)
    states = tuple([state.contiguous() for state in states])
    return _Laid(layer, rows, parts.packed(x), states, weights, parts)


def _of_the_whole(
    call: TracedLayer,
    laid: _Laid,
    grads: LayerGrads,
    needs_hx: Sequence[bool],
    needs_to: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, hx, `reset_to` and the weights, from those of a call as it was laid."""
    parts, directions = laid.parts, call.layer.num_directions
    if parts is None:
        return [grads.x, *grads.hx, *[None] * len(call.reset_to), *grads.weights]
    of_hx: list[Tensor | None] = [None] * len(needs_hx)
    of_to: list[Tensor | None] = [None] * len(needs_to)
    for index, grad in enumerate(grads.hx):
        if grad is not None and needs_hx[index]:
            of_hx[index] = gradient_of_hx(parts, directions, grad, call.rows.B)
        if grad is not None and needs_to and needs_to[index]:
            of_to[index] = gradient_of_start(parts, directions, grad, call.reset_to[index])
    grad_x = None if grads.x is None else laid.scattered(grads.x)
    return [grad_x, *of_hx, *of_to, *grads.weights]


def _either(needs_hx: Sequence[bool], needs_to: Sequence[bool]) -> tuple[bool, ...]:
    """Whether the gradient of each state that a segment starts from is needed."""
    if not needs_to:
        return tuple(needs_hx)
    return tuple([a or b for a, b in zip(needs_hx, needs_to, strict=True)])


def _choice(call: TracedLayer, laid: _Laid, needs_grad: bool) -> tuple[Problem, _Chosen]:
    """The properties of a call, and the backend chosen for it."""
    x, (T, B, N, sizes) = laid.x, laid.rows
    where, index = x.device.type, x.get_device()
    problem = Problem(x.dtype, where, T, B, N, sizes is not None, needs_grad, index)
    spec, answers = _spec(call.layer), _CHOICES.answers()
    kind = (call.key, *kind_of(spec, problem))
    chosen = answers.get(kind) or answers.get((*kind, problem))
    if chosen is None:
        wanted = by_key(call.key)
        backend, sizes_matter = choose_for_sizes(spec, problem, wanted, traced=True)
        chosen = _Chosen(backend, fallback_for(spec, problem, wanted))
        answers[(*kind, problem) if sizes_matter else kind] = chosen
    return problem, chosen


@lru_cache(maxsize=512)
def _spec(layer: LayerSpec) -> RNNSpec:
    """The stack of one layer alone."""
    return RNNSpec(
        layer.input_size,
        layer.hidden_size,
        cell=layer.cell,
        bias=layer.bias,
        bidirectional=layer.num_directions == 2,
        proj_size=layer.proj_size,
        quantized=layer.quantized,
    )


def _apart(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Make the outputs contiguous, and copy those that share memory with an input or each other.

    A custom operator must not return such tensors, but the two biases of a direction have the same
    gradient, and a backend may return one tensor for both.
    """
    taken = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    apart = []
    for output in outputs:
        fresh = output.contiguous()
        if fresh.untyped_storage().data_ptr() in taken:
            fresh = fresh.clone()
        taken.add(fresh.untyped_storage().data_ptr())
        apart.append(fresh)
    return apart
