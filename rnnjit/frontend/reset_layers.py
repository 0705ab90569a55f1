"""Resets by the kernels themselves, for devices that the host is not to wait for.

Where sequences are cut, how many segments there are is data, which the host has to read. Here the
cell resets its states instead (`rnnjit.ir.with_resets`), and the mask is a row input: everything is
computed on the device. In the columns of each row stands what the step after it starts from.

D is the number of directions, S that of states. As in `rnnjit.execution.stretches`, the backward
direction passes from step t to t - 1 over the reset at t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import Fallback
from rnnjit.errors import UnsupportedError
from rnnjit.execution.all_states import run_stack_states, why_not_recorded
from rnnjit.frontend.cell_loop import LoopResult, Resets
from rnnjit.frontend.recurrent_plan import initial
from rnnjit.ir import CellSpec, NormalForm, normal_form, with_resets
from rnnjit.ir.resets import Starts
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

#: `(spec, problem) -> (backend, fallback)`; raises UnsupportedError if the named backend declines.
Choose = Callable[[RNNSpec, Problem], tuple[Backend, Fallback]]

#: How `rnnjit.explain` calls both ways of running a call with resets.
RESETS_ITSELF = "with resets in its kernels, of which the host reads nothing"
CUT = "cut at its resets into a packed batch, whose sizes the host reads"


class ResetLayer(NamedTuple):
    """A layer whose cell resets its own states.

    Attributes:
        spec: the layer alone, with the normal form of the cell.
        form: how its states and those of the cell that resets itself belong together.
        states: S, the states of the cell without resets.
        row_inputs: those of the cell without resets.
    """

    spec: RNNSpec
    form: NormalForm
    states: int
    row_inputs: int


class Chosen(NamedTuple):
    """A layer that resets itself, and what runs it.

    Attributes:
        layer: the layer.
        backend: its backend.
        fallback: the policy if the backend raises.
    """

    layer: ResetLayer
    backend: Backend
    fallback: Fallback


def of_layer(resets: Resets, index: int) -> Resets:
    """The resets of one layer, with L = 1."""
    if resets.starts is None:
        return resets
    return Resets(resets.mask, tuple([each.narrow(0, index, 1) for each in resets.starts]))


def resets_in_kernel(choose: Choose, spec: RNNSpec, problem: Problem) -> bool:
    """Whether the backend that runs a dense call without resets declares `resets_in_kernel`."""
    try:
        return choose(spec, problem)[0].resets_in_kernel
    except UnsupportedError:  # the packed batch of the segments may be supported
        return False


def chosen_layer(
    choose: Choose,
    layer: LayerSpec,
    cell: CellSpec,
    problem: Problem,
    resets: Resets,
    *,
    every: bool,
) -> Chosen | None:
    """A layer that resets itself, and what runs it.

    Args:
        choose: chooses the backend of a layer.
        layer: the layer without resets.
        cell: its cell, in normal form or not.
        problem: the properties of the call, dense.
        resets: where it is reset.
        every: whether the states of every step are returned.

    Returns:
        None if no backend that declares `resets_in_kernel` computes it: projected states are not
        the cell's to reset, and a backend may decline the cell.
    """
    if layer.proj_size or layer.quantized:
        return None
    own = _reset_layer(layer, cell, _starts_of(resets), every)
    try:
        backend, fallback = choose(own.spec, problem)
    except UnsupportedError:
        return None
    if not backend.resets_in_kernel or why_not_recorded(backend, own.spec, problem):
        return None
    return Chosen(own, backend, fallback)


def chosen_stack(
    choose: Choose, spec: RNNSpec, problem: Problem, resets: Resets, *, every: bool
) -> tuple[Chosen, ...] | None:
    """`chosen_layer` of each layer of torch's; None if it is None for one of them."""
    found = []
    for layer in spec.layers:
        chosen = chosen_layer(choose, layer, layer.cell, problem, resets, every=every)
        if chosen is None:
            return None
        found.append(chosen)
    return tuple(found)


def run_chosen(
    chosen: Chosen,
    rows: Rows,
    problem: Problem,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    resets: Resets,
) -> LoopResult:
    """Run a layer that resets itself.

    Args:
        chosen: the layer.
        rows: how the rows of `x` are laid over time, dense.
        problem: the properties of the call.
        x: the rows of the layer without resets: `[N, F]` or `[T, B, F]`.
        hx: each state of the cell `[D, B, H]`.
        weights: those of the layer without resets.
        resets: those of the layer, on the device of x.

    Returns:
        y `[N, D*H]`, h_n, and for the layer the states of every step, empty if not wanted.
    """
    layer, S = chosen.layer, chosen.layer.states
    D, count = layer.spec.num_directions, len(weights) // layer.spec.num_directions
    given: list[Tensor] = []
    for d in range(D):
        given += [*weights[d * count : (d + 1) * count], *_parameters(resets, d)]
    before = _states_before(resets, hx)
    # The states that the steps computed, of which no step reads the one before.
    before *= len(layer.form.states) // S
    before = tuple([state.contiguous() for state in initial(layer.form, before, given)])
    _, h_n, (after,) = run_stack_states(
        *(chosen.backend, layer.spec, problem, rows, _with_columns(layer, x, resets)),
        *(before, given, False, chosen.fallback),
    )
    y = after[layer.form.output].clone()
    every = tuple([after[place] for place in layer.form.states[S:]])
    ends = tuple([h_n[place] for place in layer.form.states[:S]])
    return LoopResult(y, ends, (every,) if every else ())


def run_chosen_stack(
    layers: Sequence[Chosen],
    rows: Rows,
    problem: Problem,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    resets: Resets,
    dropout: float,
) -> LoopResult:
    """Run layers that reset themselves, one after the other, with dropout between them.

    Args:
        layers: from first to last.
        rows: as in `run_chosen`.
        problem: as in `run_chosen`.
        x: as in `run_chosen`, of the first layer.
        hx: each state `[L*D, B, H]`.
        weights: of all layers, in nn.RNN's flat order.
        resets: those of all layers.
        dropout: the probability.
    """
    D, count = layers[0].layer.spec.num_directions, len(weights) // len(layers)
    finals: list[States] = []
    states: list[States] = []
    for index, chosen in enumerate(layers):
        if dropout and index:
            x = torch.dropout(x, dropout, True)
        own = tuple([state.narrow(0, index * D, D) for state in hx])
        given = weights[index * count : (index + 1) * count]
        found = run_chosen(chosen, rows, problem, x, own, given, of_layer(resets, index))
        x = found.y
        finals.append(found.h_n)
        states += found.states
    return LoopResult(x, tuple(map(torch.cat, zip(*finals, strict=True))), tuple(states))


@lru_cache(maxsize=1024)
def _reset_layer(layer: LayerSpec, cell: CellSpec, starts: Starts, every: bool) -> ResetLayer:
    form = normal_form(with_resets(cell, starts, every=every))
    own = RNNSpec(
        *(layer.input_size, layer.hidden_size, 1, form.cell, layer.bias),
        bidirectional=layer.num_directions == 2,
    )
    return ResetLayer(own, form, len(cell.states), len(cell.row_inputs))


def _starts_of(resets: Resets) -> Starts:
    if resets.starts is None:
        return "zeros"
    return "vectors" if resets.starts[0].dim() == 3 else "rows"


def _parameters(resets: Resets, d: int) -> list[Tensor]:
    """The parameters `[H]` that a direction has beside its own: what all resets start from."""
    if _starts_of(resets) != "vectors" or resets.starts is None:
        return []
    return [start[0, d] for start in resets.starts]


def _states_before(resets: Resets, hx: States) -> States:
    """The states that the first steps start from, each `[D, B, H]`."""
    found, mask = [], resets.mask[0].unsqueeze(1)
    for index, state in enumerate(hx):
        anew: Tensor | float = 0.0
        if resets.starts is not None:
            start = resets.starts[index][0]
            anew = start[0] if start.dim() == 2 else start[0, :, 0]
        ways = [torch.where(mask, anew, state[0]), *state[1:]]
        found.append(torch.stack(ways))
    return tuple(found)


def _with_columns(layer: ResetLayer, x: Tensor, resets: Resets) -> Tensor:
    """The rows of x, with the row inputs that say where each step hands on other states."""
    I, H, R = layer.spec.input_size, layer.spec.hidden_size, layer.row_inputs
    T, B = resets.mask.shape
    parts = [x[..., :I]]
    for d in range(layer.spec.num_directions):
        columns = [x[..., I + d * R * H : I + (d + 1) * R * H]] if R else []
        columns.append(_passed(resets.mask, d).to(x.dtype).unsqueeze(2).expand(T, B, H))
        if _starts_of(resets) == "rows" and resets.starts is not None:
            # Shifted as the mask is; what the roll puts at the end is read nowhere.
            columns += [each[0, :, :, d].roll(d - 1, 0) for each in resets.starts]
        parts += [each.reshape(*x.shape[:-1], each.shape[-1]) for each in columns]
    return torch.cat(parts, -1)


def _passed(mask: Tensor, d: int) -> Tensor:
    """Whether a direction passes over a reset when it leaves each row: boolean `[T, B]`."""
    found = torch.zeros_like(mask)
    if d == 0:
        found[:-1] = mask[1:]
    else:
        found[1:] = mask[1:]
    return found
