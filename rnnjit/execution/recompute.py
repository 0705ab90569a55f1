"""Training that keeps no gate: the backward pass recomputes the forward pass, segment by segment.

A forward pass for training keeps several values of every step, such as the four gates and c of an
LSTM. `Recomputing` keeps the states at the boundaries of segments of steps instead, about sqrt(T)
of them, and its backward pass computes one segment at a time anew, from the last to the first
(Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016). A training step then computes
the forward pass twice: about 4/3 of the multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.dispatch.fallback import Fallback
from rnnjit.execution.validate_backend import check_grads, check_output
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

Found = TypeVar("Found")

#: The fewest rows of a segment. Kernels lay out the weights anew in each, which is work of as many
#: elements as some 20 rows read.
_ROWS = 256


class Segment(NamedTuple):
    """Consecutive steps of a direction, counted in the order in which it computes them.

    Attributes:
        first: the number of rows before it.
        rows: how its rows are laid over time.
    """

    first: int
    rows: Rows


def segments(layer: LayerSpec, rows: Rows) -> list[Segment]:
    """Cut the steps of each direction of a layer into segments of about equally many rows.

    Two directions of a packed batch are one segment, since the backward one of those cannot be
    computed as a forward one.

    Args:
        layer: the configuration of the layer.
        rows: how its rows are laid over time.
    """
    count = min(isqrt(rows.T), rows.N // _ROWS)
    if count < 2 or (rows.batch_sizes is not None and layer.num_directions > 1):
        return [Segment(0, rows)]
    found, sizes = [], rows.sizes
    start = first = held = 0
    for stop, size in enumerate(sizes, 1):
        held += size
        if held * count >= rows.N or stop == rows.T:
            table = None if rows.batch_sizes is None else rows.batch_sizes[start:stop]
            found.append(Segment(first, Rows(stop - start, sizes[start], held, table)))
            start, first, held = stop, first + held, 0
    return found


class Recomputing(Backend):
    """Another backend, whose backward pass recomputes the forward pass.

    It serves calls that the other backend accepted, and is never asked which.

    Args:
        inner: the backend that computes both passes; not differentiable.
    """

    devices = None

    def __init__(self, inner: Backend) -> None:
        self.name = inner.name  # type: ignore[misc]  # errors name the backend that computes
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
        """The forward pass of the other backend, which saves the states between segments.

        They are, for each direction, boundary and state that y does not hold, `[1, sequences, P or
        H]`. Where y holds all of them, the other backend computes the layer at once.
        """
        cut = segments(layer, rows)
        if not keep or len(cut) == 1 or len(hx) == _in_y(layer):
            output = self.inner.forward(layer, rows, x, hx, weights, False)
            return output._replace(saved=())
        y = x.new_empty(rows.N, layer.num_directions * layer.output_size)
        h_n = tuple([torch.empty_like(state) for state in hx])
        saved: list[Tensor] = []
        for way in _directions(layer, rows):
            states, own = way.states(hx), way.weights(weights)
            for segment in cut:
                if segment.first:
                    states = tuple([state[:, : segment.rows.B].contiguous() for state in states])
                    saved += states[_in_y(layer) :]
                given = way.layer, segment.rows, way.rows_of(x, segment)
                output = self.inner.forward(*given, states, own, False)
                check_output(self.inner, *given, output)
                way.write(way.columns(y), segment, output.y)
                states = output.h_n
                for last, state in zip(way.states(h_n), states, strict=True):
                    last[:, : segment.rows.B] = state
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
        """Both passes of the other backend over each segment, from the last to the first."""
        given = layer, rows, x, hx, weights, output, grad_y, grad_h_n
        return self.backward_states(*given, (None,) * (len(hx) - 1), needs)

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """As the other backend."""
        return self.inner.records_states(layer, problem)

    def forward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The forward pass of the other backend: its results hold the states of every step."""
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
        """As `backward`, of outputs of `forward` or `forward_states`."""
        cut = segments(layer, rows)
        if len(cut) == 1:
            given = layer, rows, x, hx, weights
            return self._once_more(*given, grad_y, grad_h_n, grad_states, needs)
        total = _Sums(x, weights, needs)
        starts: list[tuple[Tensor | None, ...]] = []
        for d, way in enumerate(_directions(layer, rows)):
            wanted = Needs(needs.x, needs.hx, way.weights(needs.weights))
            if not (wanted.x or any(wanted.hx) or any(wanted.weights)):
                continue
            own, later = way.weights(weights), tuple([way.ends(grad) for grad in grad_h_n])
            users = later
            for k in reversed(range(len(cut))):
                segment = cut[k]
                before = way.states(hx) if k == 0 else _boundary(way, cut, k, output)
                if k + 1 < len(cut):
                    later = _joined(later, users, segment.rows.B)
                else:
                    later = tuple([None if g is None else g[:, : segment.rows.B] for g in users])
                every = (True,) * len(hx)
                found = self._once_more(
                    *(way.layer, segment.rows, way.rows_of(x, segment), before, own),
                    way.gradient(grad_y, segment),
                    later,
                    tuple([way.gradient(grad, segment) for grad in grad_states]),
                    wanted if k == 0 else wanted._replace(hx=every),
                )
                later = found.hx
                total.add(way, segment, found)
            starts.append(later)
        return total.result(starts, needs)

    def _once_more(
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
        """Both passes of the other backend, at once."""
        inner, given = self.inner, (layer, rows, x, hx, weights)
        if all(grad is None for grad in grad_states):
            output = inner.forward(*given, True)
            found = inner.backward(*given, output, grad_y, grad_h_n, needs)
        else:
            output = inner.forward_states(*given, True)
            found = inner.backward_states(*given, output, grad_y, grad_h_n, grad_states, needs)
        check_grads(inner, x, hx, weights, needs, found)
        return found
