"""What backends compute of a call of a `Recurrent`: its layers as a stack, or one by one.

Compiled modules and the tools lower calls here; so `explain` and `tune` work on what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import Backend, States
from rnnjit.dispatch.choice import choose, special_context
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.execution.stretches import stretches
from rnnjit.frontend.arguments import Prepared, check_weights, initial_states, prepare
from rnnjit.frontend.capture import is_quantized
from rnnjit.frontend.cell_loop import Resets
from rnnjit.frontend.lowering import needs_grad, problem_of
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.quantized_calls import apart, must_be_apart
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.recurrent_layers import required_gradients
from rnnjit.frontend.recurrent_plan import (
    LayerPlan,
    Plan,
    Stack,
    initial,
    make_plan,
    stack_spec,
    untraceable,
)
from rnnjit.frontend.reset_layers import CUT, RESETS_ITSELF, chosen_layer, resets_in_kernel
from rnnjit.spec import Problem, RNNSpec


class StackCall(NamedTuple):
    """A call of layers that form a stack, as backends compute it.

    Attributes:
        spec: the stack, with the normal form of the cell.
        hx: the states that it starts from, each `[L*D, B, H]`.
        weights: all weights, in nn.RNN's flat order.
        problem: the properties by which a backend accepts or declines it.
    """

    spec: RNNSpec
    hx: States
    weights: tuple[Tensor, ...]
    problem: Problem


def as_stack(module: Recurrent, plan: Plan, prepared: Prepared, states: States) -> bool:
    """Whether the layers run as a stack, all of whose results are recorded if one is."""
    stack = plan.stack
    if stack is None or stack.whole or not torch.is_grad_enabled():
        return stack is not None
    x, learnt = prepared.x.requires_grad, [state.requires_grad for state in states]
    weights = plan.weights(module._store.bind(module))
    count, anything = len(weights) // len(plan.layers), x or any(learnt)
    for index, layer in enumerate(plan.layers):
        own = weights[index * count : (index + 1) * count]
        anything = anything or any(weight.requires_grad for weight in own)
        x = all(required_gradients(layer, own, x, (), learnt))
        if anything and not x:
            return False
    return True


def stack_call(
    module: Recurrent, plan: Plan, stack: Stack, prepared: Prepared, states: States
) -> StackCall:
    """What backends compute of a call of layers that form a stack."""
    spec = stack_spec(
        *(module.input_size, module.hidden_size, module.num_layers, stack.form.cell, stack.bias),
        *(module.batch_first, module.dropout, module.bidirectional),
    )
    if stack.names is None:
        weights = plan.weights(module._store.bind(module))
    else:
        weights = tuple([getattr(module, name) for name in stack.names])
    names = stack.names or [f"weight {index} of the cells" for index in range(len(weights))]
    check_weights(spec, list(names), weights)
    hx = initial(stack.form, states, weights)
    return StackCall(spec, hx, weights, problem_of(prepared, hx, weights))


class LayerCall(NamedTuple):
    """What a backend is asked to compute of a call.

    Attributes:
        layer: the layer's number, or None for all of them as a stack.
        spec: the layer or the stack, with the normal form of its cell.
        problem: the properties by which a backend accepts or declines it.
        reads_states: whether the output is read from the states of every step.
        notes: what torch's operators compute beside it.
    """

    layer: int | None
    spec: RNNSpec
    problem: Problem
    reads_states: bool
    notes: tuple[str, ...]


def lower_recurrent(
    module: Recurrent,
    x: Any,
    hx: Any,
    reset: Any,
    reset_to: Any,
    return_states: bool,
    *,
    wanted: Backend | None = None,
) -> tuple[LayerCall, ...] | str:
    """What backends compute of a call, as `CompiledRecurrent` runs it.

    Args:
        module: compiled or not.
        x: as in `Recurrent.forward`.
        hx: as in `Recurrent.forward`.
        reset: as in `Recurrent.forward`.
        reset_to: as in `Recurrent.forward`.
        return_states: as in `Recurrent.forward`.
        wanted: the backend that the user named, or None for "auto".

    Returns:
        The layers; or why the user's own `forward` runs, step by step.

    Raises:
        CellError: a cell computes what no backend could.
        AttributeError, TypeError, ValueError, RuntimeError, IndexError: as `Recurrent.forward`.
    """
    if reason := overriding(module, x, hx):
        return reason
    if is_quantized(module) and must_be_apart(x):
        rest = reset, reset_to, return_states
        return apart(lambda x, hx: lower_recurrent(module, x, hx, *rest, wanted=wanted), x, hx)
    outer, weight = module._outer_spec(), module._first_weight()
    prepared = prepare(outer, weight, x, hx)
    states = initial_states(outer, prepared)
    if (special := special_context(prepared.x, *states, *module._tensors())) is not None:
        return special
    if reason := untraceable(weight):
        return reason
    plan = plan_of(module)
    stack = reset is None and not return_states and as_stack(module, plan, prepared, states)
    if plan.stack is not None and stack:
        call = stack_call(module, plan, plan.stack, prepared, states)
        return (LayerCall(None, call.spec, call.problem, False, ()),)
    cuts = module._checked_resets(outer, x, reset, reset_to)
    return _lower_layers(module, plan, prepared, states, cuts, wanted, every=return_states)


def _lower_layers(
    module: Recurrent,
    plan: Plan,
    prepared: Prepared,
    states: States,
    cuts: Resets | None,
    wanted: Backend | None,
    *,
    every: bool,
) -> tuple[LayerCall, ...]:
    """The layers of a call that run one by one."""
    weight, (T, B, N, sizes) = module._first_weight(), prepared.rows
    if cuts is not None and not cuts.mask.numel():
        cuts = None
    recorded, found, D = cuts is not None and cuts.recorded, [], module.num_directions
    recorded = recorded and torch.is_grad_enabled()
    own = [tuple(getattr(module, n) for n in each) for each in _names_of(module)]
    for index, layer in enumerate(plan.layers):
        tensors = tuple(each for of in own[index * D : (index + 1) * D] for each in of)
        recorded = recorded or needs_grad(prepared.x, states, tensors)
        where, place = weight.device.type, weight.get_device()
        problem = Problem(weight.dtype, where, T, B, N, sizes is not None, recorded, place)
        call = LayerCall(index, layer.spec, problem, layer.form.output != 0, notes_on(layer))
        found.append(call if cuts is None else _with_resets(call, layer, cuts, wanted, every=every))
    return tuple(found)


def _with_resets(
    call: LayerCall, layer: LayerPlan, cuts: Resets, wanted: Backend | None, *, every: bool
) -> LayerCall:
    """A layer's call with resets, as `run_layers` runs it."""

    def choose_by_name(spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
        return choose(spec, problem, wanted), RAISE

    problem, cell = call.problem, layer.traced[0].spec
    if resets_in_kernel(choose_by_name, call.spec, problem):
        given = call.spec.layer(0), cell, problem, cuts
        chosen = chosen_layer(choose_by_name, *given, every=every)
        if chosen is not None:
            notes = (*call.notes, RESETS_ITSELF)
            return call._replace(spec=chosen.layer.spec, reads_states=True, notes=notes)
    if not cuts.mask.any():
        return call
    parts = stretches(cuts.mask)
    problem = problem._replace(T=len(parts.batch_sizes), B=len(parts.sequence), packed=True)
    return call._replace(problem=problem, notes=(*call.notes, CUT))


def plan_of(module: Recurrent) -> Plan:
    """What a module computes now, compiled or not.

    Raises:
        CellError: a cell computes what no backend could.
    """
    return _int8_plan(module) or make_plan(module, module._store)


def _int8_plan(module: Recurrent) -> Plan | None:
    """What a quantized module computes; None for others."""
    plan: Plan | None = vars(module).get("_int8_plan")
    return plan


def _names_of(module: Recurrent) -> list[Sequence[str]]:
    """For each direction of each layer the names of its tensors."""
    if (plan := _int8_plan(module)) is not None:
        fixed: list[Any] = [each for layer in plan.layers for each in layer.traced]
        return [each.names for each in fixed]
    return [list(names.values()) for names in module._store.names]


def notes_on(layer: LayerPlan) -> tuple[str, ...]:
    """What torch's operators compute of a layer."""
    traced, found = layer.traced[0], []
    if traced.draws:
        found.append(f"random tensors that torch draws at each step: {len(traced.draws)}")
    if names := traced.spec.row_inputs:
        found.append(f"tensors that torch computes from x and draws for all steps: {len(names)}")
    return tuple(found)
