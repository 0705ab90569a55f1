"""Training that keeps no gate: the backward pass recomputes the forward pass, segment by segment.

A forward pass for training keeps several values of every step and hidden unit; for an LSTM they are
the gates and c. `Recomputing` keeps the states between segments of steps instead, and its backward
pass computes the segments anew, one at a time, from the last to the first (Chen et al., Training
Deep Nets with Sublinear Memory Cost, 2016). The forward pass is computed twice, so that a training
step has about 4/3 of the multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.dispatch.fallback import Fallback
from rnnjit.execution.segments import Direction, Segment, segments
from rnnjit.execution.validate_backend import check_grads, check_output
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

Found = TypeVar("Found")


def keeps_more(spec: RNNSpec) -> bool:
    """Whether the forward pass of such a stack keeps more than y for the backward pass."""
    cell = spec.cell
    return bool(cell.saved or spec.proj_size or len(cell.states) > _states_in_y(spec.layer(0)))


def recomputing(backend: Backend, spec: RNNSpec, problem: Problem) -> Backend:
    """The backend that runs a call with `recompute=True`: `backend` itself if nothing is saved.

    Args:
        backend: the backend that accepted the call.
        spec: the stack.
        problem: the properties of the call.
    """
    if backend.differentiable or not problem.needs_grad or not keeps_more(spec):
        return backend
    return Recomputing(backend)


class Recomputing(Backend):
    """A backend whose backward pass recomputes the forward pass of another one.

    The forward pass gives the same bits as that of the other backend, if that one gives the same
    bits for a sequence at once and in parts. Of a packed batch with two directions, the backward
    pass recomputes all steps at once.

    Args:
        inner: the other backend; not differentiable. It has accepted the calls.
    """

    devices = None

    def __init__(self, inner: Backend) -> None:
        self.name = inner.name  # type: ignore[misc]  # one class stands for many backends
        self.under_autocast = inner.under_autocast  # type: ignore[misc]  # as above
        self.resets_in_kernel = inner.resets_in_kernel  # type: ignore[misc]  # as above
        self.inner = inner

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The forward pass, which saves the states before each segment that y does not hold.

        They are, direction by direction, segment by segment: each state `[1, b, P or H]`.
        """
        cut, known = segments(layer, rows), _states_in_y(layer)
        if not keep or len(cut) == 1 or len(hx) == known:
            output = self.inner.forward(layer, rows, x, hx, weights, False)
            return output._replace(saved=())
        y = x.new_empty(rows.N, layer.num_directions * layer.output_size)
        h_n = tuple([torch.empty_like(state) for state in hx])
        saved: list[Tensor] = []
        carried = self.inner.carried_dtype(x.dtype)
        for way in _directions(layer, rows):
            states, own = way.states(hx), way.weights(weights)
            columns, last = way.columns(y), way.states(h_n)
            for segment in cut:
                if segment.first:
                    states = tuple([s[:, : segment.rows.B].contiguous() for s in states])
                    saved += states[known:]
                else:
                    states = _carried(states, carried)
                flat = way.take(x, segment)
                output = self.inner.forward(way.layer, segment.rows, flat, states, own, False)
                check_output(self.inner, way.layer, segment.rows, flat, output, carried)
                way.put(columns, segment, output.y)
                states = output.h_n
                for whole, state in zip(last, states, strict=True):
                    whole[:, : segment.rows.B] = state
        return LayerOutput(y, h_n, tuple(saved))

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """Both passes over each segment. It reads all inputs."""
        given = layer, rows, x, hx, weights, output, grad_y, grad_h_n
        return self.backward_states(*given, (None,) * (len(hx) - 1), needs)

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """As the other backend, if y holds the first state."""
        return _states_in_y(layer) == 1 and self.inner.records_states(layer, problem)

    def forward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The forward pass, which saves nothing: its results hold all states."""
        output = self.inner.forward_states(layer, rows, x, hx, weights, False)
        return output._replace(saved=())

    def backward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        grad_states: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """As `backward`, for results of `forward_states` as well."""
        cut = segments(layer, rows)
        if len(cut) == 1:
            given = layer, rows, x, hx, weights
            return self._anew(*given, grad_y, grad_h_n, grad_states, needs)
        sums, saved = _Sums(x, weights, needs), iter(output.saved)
        carried = self.inner.carried_dtype(x.dtype)
        starts: list[tuple[Tensor | None, ...]] = []
        for way in _directions(layer, rows):
            wanted = needs._replace(weights=way.weights(needs.weights))
            before = [way.states(hx)]
            before += [
                _carried(_states_before(way, segment, output, saved), carried)
                for segment in cut[1:]
            ]
            if not (wanted.x or any(wanted.hx) or any(wanted.weights)):
                continue
            own, of_ends = way.weights(weights), _each(way.state, grad_h_n)
            of_rows = _each(way.columns, (grad_y, *grad_states))
            later: tuple[Tensor | None, ...] = (None,) * len(hx)
            for segment, states in zip(reversed(cut), reversed(before), strict=True):
                later = _gradients_of_ends(later, of_ends, segment.rows.B)
                of_y, *others = _each(partial(way.take, segment=segment), of_rows)
                needed = wanted._replace(hx=(True,) * len(hx)) if segment.first else wanted
                found = self._anew(
                    *(way.layer, segment.rows, way.take(x, segment), states, own),
                    *(of_y, later, tuple(others), needed),
                )
                sums.add(way, segment, found)
                later = found.hx
                del found  # before the next segment has gradients of the weights of its own
            starts.append(later)
        return LayerGrads(sums.x, _side_by_side(starts, needs.hx), sums.of_weights())

    def _anew(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        grad_states: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """Both passes of the other backend."""
        inner, given = self.inner, (layer, rows, x, hx, weights)
        if all(grad is None for grad in grad_states):
            output = inner.forward(*given, True)
            found = inner.backward(*given, output, grad_y, grad_h_n, needs)
        else:
            output = inner.forward_states(*given, True)
            found = inner.backward_states(*given, output, grad_y, grad_h_n, grad_states, needs)
        check_grads(inner, x, hx, weights, needs, found)
        return found


class RecomputingFallback(Fallback):
    """The policy of a backend, for its `Recomputing` form.

    Args:
        policy: the policy; those that take over recompute, too.
        spec: the stack.
        problem: the properties of the call.
    """

    def __init__(self, policy: Fallback, spec: RNNSpec, problem: Problem) -> None:
        super().__init__()
        self._policy, self._call = policy, (spec, problem)

    @property
    def active(self) -> bool:
        """Whether another backend may take over."""
        return self._policy.active

    def run(self, backend: Backend, work: Callable[[Backend], Found]) -> Found:
        """See `Fallback.run`."""
        return self._policy.run(_inner(backend), self._recomputed(work))

    def instead(
        self, backend: Backend, error: Exception, work: Callable[[Backend], Found]
    ) -> Found:
        """See `Fallback.instead`."""
        return self._policy.instead(_inner(backend), error, self._recomputed(work))

    def or_else(
        self, backend: Backend, work: Callable[[], Found], other: Callable[[], Found], instead: str
    ) -> Found:
        """See `Fallback.or_else`."""
        return self._policy.or_else(_inner(backend), work, other, instead)

    def _recomputed(self, work: Callable[[Backend], Found]) -> Callable[[Backend], Found]:
        """The work by a backend's `Recomputing` form."""
        return lambda backend: work(recomputing(backend, *self._call))


class _Sums:
    """The gradients of x and the weights, summed over segments and directions.

    Those of the weights are summed in float32 at least.

    Args:
        x: the input.
        weights: the weights.
        needs: which gradients are needed.

    Attributes:
        x: the gradient of x, or None.
    """

    def __init__(self, x: Tensor, weights: Sequence[Tensor], needs: Needs) -> None:
        self.x = torch.empty_like(x) if needs.x else None
        self._dtype, self._sum_dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
        self._weights: list[Tensor | None] = [None] * len(weights)

    def add(self, way: Direction, segment: Segment, found: LayerGrads) -> None:
        """Add the gradients of a segment of a direction."""
        if self.x is not None and found.x is not None:
            # The first direction writes every row, the second one adds to it.
            (way.add if way.index else way.put)(self.x, segment, found.x)
        for i, grad in zip(way.weights(range(len(self._weights))), found.weights, strict=True):
            held = self._weights[i]
            if grad is None:
                continue
            if held is None:
                self._weights[i] = grad.to(self._sum_dtype, copy=True)
            else:
                held.add_(grad)

    def of_weights(self) -> tuple[Tensor | None, ...]:
        """The gradients of the weights."""
        return _each(lambda grad: grad.to(self._dtype), self._weights)


def _states_in_y(layer: LayerSpec) -> int:
    """How many of the states y holds: the first one, or none."""
    return 1 if layer.proj_size or layer.cell.out_state == 0 else 0


def _carried(states: States, dtype: torch.dtype) -> States:
    """States between segments, of which all but the first have this dtype."""
    return (states[0], *[state.to(dtype) for state in states[1:]])


def _inner(backend: Backend) -> Backend:
    """The backend of which this is the `Recomputing` form, or the backend itself."""
    return backend.inner if isinstance(backend, Recomputing) else backend


def _directions(layer: LayerSpec, rows: Rows) -> list[Direction]:
    return [Direction(layer, rows, index) for index in range(layer.num_directions)]


def _states_before(
    way: Direction, segment: Segment, output: LayerOutput, saved: Iterator[Tensor]
) -> States:
    """The states before a segment: from y, and from every state, or the next of what is saved."""
    held = (output.y, *output.states)[: _states_in_y(way.layer) + len(output.states)]
    found = [way.before(way.columns(state), segment) for state in held]
    found += islice(saved, len(way.layer.state_sizes) - len(found))
    return tuple(found)


def _gradients_of_ends(
    later: tuple[Tensor | None, ...], users: tuple[Tensor | None, ...], count: int
) -> tuple[Tensor | None, ...]:
    """The gradients of the last states of a segment, each `[1, count, P or H]` or None for zero.

    Args:
        later: those of the states before the next segment, of the sequences that go on; None if
            there is no next segment.
        users: those of each sequence's last states, from outside.
        count: the number of the segment's sequences, the first ones of the batch.
    """
    found = []
    for going_on, user in zip(later, users, strict=True):
        if going_on is None:
            found.append(None if user is None else user[:, :count])
            continue
        _, start, features = going_on.shape
        if user is None:
            ended = going_on.new_zeros(1, count - start, features)
        else:
            ended = user[:, start:count]
        found.append(torch.cat([going_on, ended], 1) if start < count else going_on)
    return tuple(found)


def _side_by_side(
    starts: Sequence[tuple[Tensor | None, ...]], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of the initial states, from those of each direction."""
    found = []
    for index, need in enumerate(needed):
        parts = [part for states in starts if (part := states[index]) is not None]
        found.append((parts[0] if len(parts) == 1 else torch.cat(parts)) if need else None)
    return tuple(found)


def _each(
    function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The function of each tensor, and None for None."""
    return tuple([None if tensor is None else function(tensor) for tensor in tensors])
