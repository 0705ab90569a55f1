"""Runs a `Recurrent` so that the gradient of every state can be computed.

The user's own `forward` runs, step by step: in its graph every state of every step is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import States
from rnnjit.frontend.cell_loop import results_of
from rnnjit.frontend.recurrent import Recurrent


class CellProbe:
    """One layer of one call of a `Recurrent`.

    Args:
        cells: those of its directions.
        states: the names of their states.

    Attributes:
        states: as given.
        recorders: what runs in place of the cells, and keeps their states.
    """

    def __init__(self, cells: Sequence[Any], states: Sequence[str]) -> None:
        self.states = tuple(states)
        self.recorders = [_Recorder(cell, len(states)) for cell in cells]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The states: direction by direction, in the order of its steps, state by state."""
        return tuple(s for each in self.recorders for states in each.steps for s in states)

    def norms(self, grads: Sequence[Tensor]) -> States:
        """For each state the norm of its gradient over the batch and the features, `[D, T]`.

        Args:
            grads: the gradients of `tensors`.
        """
        D, count = len(self.recorders), len(self.states)
        norms = torch.stack([torch.linalg.vector_norm(grad) for grad in grads])
        forward, *backward = norms.view(D, -1, count).unbind()
        in_order = torch.stack([forward, *[each.flip(0) for each in backward]])
        return tuple(in_order.unbind(2))


def run_probed(rnn: Recurrent, *given: Any) -> tuple[Any, list[CellProbe]]:
    """Run a call step by step, with a probe for every layer.

    Args:
        rnn: the module.
        *given: the arguments of `Recurrent.forward`, all of them.

    Returns:
        The result of the call, and the probes from first to last layer.

    Raises:
        AttributeError, TypeError, ValueError, RuntimeError, IndexError: as `Recurrent.forward`.
    """
    D, cells, (_, states, _) = rnn.num_directions, rnn._store.bind(rnn), rnn._cell_form
    probes = [CellProbe(cells[k : k + D], states) for k in range(0, len(cells), D)]
    recorders = [each for probe in probes for each in probe.recorders]
    return rnn._run_cells(recorders, *given), probes


class _Recorder:
    """A cell that keeps its new states, each a tensor of its own that requires gradients."""

    def __init__(self, cell: Any, count: int) -> None:
        self._cell, self._count = cell, count
        self.steps: list[States] = []

    def __call__(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        result = self._cell(x, *states)
        rows, hidden = states[0].shape
        output, found = results_of(self._cell, result, self._count, (rows, hidden))
        seen, new = {id(each) for each in (x, *states)}, list[Tensor]()
        for state in found:
            if not state.requires_grad:
                # In the graph even if nothing else needs a gradient.
                own = state.detach().requires_grad_()
            elif id(state) in seen:
                # Another state, or this one a step before, is the same tensor.
                own = state.view_as(state)
            else:
                own = state
            seen.add(id(state))
            if output is state:
                output = own
            new.append(own)
        self.steps.append(tuple(new))
        return (output, *new)
