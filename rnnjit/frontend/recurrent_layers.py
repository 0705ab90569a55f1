"""Runs the layers of a compiled `Recurrent` one by one, with what torch computes for each.

That is the general way: with random draws, row inputs, resets, all states, and outputs that are
another state than the recurrent operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import States
from rnnjit.cells import TracedCell
from rnnjit.execution.all_states import run_stack_states
from rnnjit.execution.autograd import flat
from rnnjit.execution.stack import run_stack
from rnnjit.execution.stretches import (
    Stretches,
    last_states,
    states_before,
    stretches,
)
from rnnjit.frontend.cell_loop import LoopResult, Resets
from rnnjit.frontend.lowering import needs_grad
from rnnjit.frontend.recurrent_plan import LayerPlan, Plan
from rnnjit.frontend.reset_layers import (
    Choose,
    chosen_layer,
    of_layer,
    resets_in_kernel,
    run_chosen,
)
from rnnjit.ir.gradient_paths import gradient_paths, reach_everything
from rnnjit.spec import Problem, Rows


class _Cuts:
    """Where layers are reset that do not reset themselves: found when the first one runs."""

    def __init__(self, resets: Resets) -> None:
        self._resets = resets

    @cached_property
    def parts(self) -> Stretches | None:
        """The segments between resets; None if nothing is reset."""
        mask = self._resets.mask
        return stretches(mask) if self._resets.recorded or mask.any() else None


def run_layers(
    plan: Plan,
    cells: Sequence[Any],
    rows: Rows,
    x: Tensor,
    hx: States,
    dropout: float,
    choose: Choose,
    resets: Resets | None = None,
    *,
    every: bool = False,
) -> LoopResult:
    """Run all layers; the results are those of `run_loop`.

    Args:
        plan: what the cells compute.
        cells: the cells, with their tensors.
        rows: how the rows of `x` are laid over time; dense if there are resets.
        x: `[N, I]`, or `[T, B, I]` for a dense batch.
        hx: each state of the user's cell, `[L*D, B, H]`.
        dropout: the probability of the dropout between layers.
        choose: chooses the backend of a layer.
        resets: where sequences start anew, or None.
        every: whether to return the states of every step.

    Returns:
        As `run_loop`; y may be `[T, B, D*H]`. The states of every step may share memory with y.
    """
    if resets is not None and resets.mask.numel() == 0:
        resets = None
    cuts = None if resets is None else _Cuts(resets)
    finals: list[States] = []
    states: list[States] = []
    start, last = 0, len(plan.layers) - 1
    for index, layer in enumerate(plan.layers):
        D = len(layer.traced)
        own = tuple([state.narrow(0, start, D) for state in hx])
        anew = None if resets is None else of_layer(resets, index)
        found = _run_layer(
            *(layer, cells[start : start + D], rows, x, own, choose, anew, cuts), every=every
        )
        x = found.y
        finals.append(found.h_n)
        states += found.states
        if dropout and index < last:
            x = torch.dropout(x, dropout, True)
        start += D
    return LoopResult(x, tuple(map(torch.cat, zip(*finals, strict=True))), tuple(states))


def _run_layer(
    layer: LayerPlan,
    cells: Sequence[Any],
    rows: Rows,
    x: Tensor,
    hx: States,
    choose: Choose,
    resets: Resets | None,
    cuts: _Cuts | None,
    *,
    every: bool,
) -> LoopResult:
    """One layer; `hx` are states `[D, B, H]`, `resets` are those of the layer."""
    weights: list[Tensor] = []
    for traced, cell in zip(layer.traced, cells, strict=True):
        weights += traced.weights(cell)
    learnt = x.requires_grad
    x, learnt_rows = _inputs(layer, cells, rows, x)
    starts = () if resets is None or resets.starts is None else resets.starts
    recorded = needs_grad(x, (*hx, *starts), tuple(weights))
    found = None
    if resets is not None:
        where, place, spec = x.device.type, x.get_device(), layer.traced[0].spec
        problem = Problem(x.dtype, where, rows.T, rows.B, rows.N, False, recorded, place)
        chosen = None
        if resets_in_kernel(choose, layer.spec, problem):
            whole = layer.spec.layer(0)
            chosen = chosen_layer(choose, whole, spec, problem, resets, every=every)
        if chosen is not None:
            found = run_chosen(chosen, rows, problem, x, hx, weights, resets)
    if found is None:
        cut = None if cuts is None else cuts.parts
        found = _run_cut(layer, rows, x, hx, weights, choose, cut, starts or None, every=every)
    y, h_n, states = found
    if recorded and not reach_everything(layer.traced[0].spec):
        starting = [each.requires_grad for each in (*hx, *starts)]
        required = required_gradients(layer, weights, learnt, learnt_rows, starting)
        y = _recorded_if(required[0], y)
        h_n = tuple(map(_recorded_if, required[1:], h_n))
        states = tuple([tuple(map(_recorded_if, required[1:], of)) for of in states])
    return LoopResult(y, h_n, states)


def _run_cut(
    layer: LayerPlan,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    choose: Choose,
    cut: Stretches | None,
    starts: States | None,
    *,
    every: bool,
) -> LoopResult:
    """One layer, cut into segments if there are resets; `starts` are those of `states_before`."""
    spec, form, D = layer.spec, layer.form, len(layer.traced)
    if cut is not None:
        x = cut.packed(flat(x))
        hx = states_before(cut, D, hx, starts)
        rows = Rows(len(cut.batch_sizes), len(cut.sequence), rows.N, cut.batch_sizes)
    hx = tuple([state.contiguous() for state in layer.initial(hx, weights)])
    recorded = needs_grad(x, hx, tuple(weights))
    where, place, packed = x.device.type, x.get_device(), rows.batch_sizes is not None
    problem = Problem(x.dtype, where, rows.T, rows.B, rows.N, packed, recorded, place)
    backend, fallback = choose(spec, problem)
    states: tuple[States, ...] = ()
    if every or form.output != 0:
        y, h_n, (after,) = run_stack_states(
            backend, spec, problem, rows, x, hx, weights, False, fallback
        )
        if form.output != 0:
            y = after[form.output].clone()
        states = (tuple([after[place] for place in form.states]),) if every else ()
    else:
        y, h_n = run_stack(backend, spec, rows, x, hx, weights, False, recorded, fallback)
    h_n = tuple([h_n[place] for place in form.states])
    if cut is not None:
        y, h_n = cut.dense(flat(y)), tuple([last_states(cut, D, state) for state in h_n])
        states = tuple([tuple([cut.dense(each) for each in of]) for of in states])
    return LoopResult(y, h_n, states)


def required_gradients(
    layer: LayerPlan,
    weights: Sequence[Tensor],
    x: bool,
    row_inputs: Sequence[bool],
    states: Sequence[bool],
) -> list[bool]:
    """Whether the output and each state require a gradient, as in the user's own loop.

    Args:
        layer: the layer.
        weights: of all directions.
        x: whether x requires one.
        row_inputs: the same of each row input of each direction.
        states: the same of each initial state; those that resets start from follow.
    """
    cell, D = layer.traced[0].spec, len(layer.traced)
    count, S, R = len(weights) // D, len(cell.states), len(cell.row_inputs)
    first = count - len(cell.parameters)
    required = [False] * (1 + S)
    for d in range(D):
        own = [weight.requires_grad for weight in weights[d * count : (d + 1) * count]]
        zx, zh = x or any(own[:first:2]), any(own[1:first:2])
        for index, reached in enumerate(gradient_paths(cell)):
            required[index] |= (reached.zx and zx) or (reached.zh and zh)
            required[index] |= any(any(states[k::S]) for k in reached.states)
            required[index] |= any(own[first + k] for k in reached.parameters)
            required[index] |= any(row_inputs[d * R + k] for k in reached.row_inputs)
    return required


def _recorded_if(required: bool, result: Tensor) -> Tensor:
    """A result, without its history if none is to be seen."""
    # A copy: the user may change it, and the backward pass may read what it was.
    return result if required else result.detach().clone()


def _inputs(
    layer: LayerPlan, cells: Sequence[Any], rows: Rows, x: Tensor
) -> tuple[Tensor, list[bool]]:
    """The rows of a layer: x itself if the kernel multiplies it, and the row inputs.

    Returns:
        `[N, I + D*R*H]`, or `[T, B, I + D*R*H]` if x is 3-D, contiguous; and for each row input
        whether it requires a gradient.
    """
    parts = [x] if layer.spec.input_size else []
    learnt: list[bool] = []
    for d, (traced, cell) in enumerate(zip(layer.traced, cells, strict=True)):
        drawn = _draw(traced, rows, x, reverse=d == 1)
        if traced.spec.row_inputs:
            own = traced.row_inputs(cell, flat(x), drawn)
            learnt += [each.requires_grad for each in own]
            parts += [each.reshape(*x.shape[:-1], each.shape[-1]) for each in own]
    if not parts:
        return x.new_empty(*x.shape[:-1], 0), learnt
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, -1), learnt


def _draw(traced: TracedCell, rows: Rows, x: Tensor, *, reverse: bool) -> tuple[Tensor, ...]:
    """The random draws of a direction for all rows, in the order in which its loop draws."""
    if not traced.draws:
        return ()
    steps = []
    sizes = rows.sizes
    for size in reversed(sizes) if reverse else sizes:
        steps.append([draw(size, x.dtype, x.device) for draw in traced.draws])
    if reverse:
        steps.reverse()
    return tuple([torch.cat(draws) for draws in zip(*steps, strict=True)])
