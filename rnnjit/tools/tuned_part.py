"""What `rnnjit.tune` measures of an observed call: one layer, or layers that form a stack."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from rnnjit.frontend.arguments import initial_states, prepare
from rnnjit.frontend.autocast import problem_under_autocast
from rnnjit.frontend.lowering import lower, problem_of
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.recurrent_lowering import lower_recurrent
from rnnjit.spec import Problem, RNNSpec
from rnnjit.tools.observe import Seen

_TORCH = "torch's own operators run it"


class Part(NamedTuple):
    """What backends are asked to compute.

    Attributes:
        spec: the layer or the stack.
        problem: the properties of the call.
        weights: the tensors that gradients may reach beside x and hx.
        unmeasured: why it cannot be measured, or "".
    """

    spec: RNNSpec
    problem: Problem
    weights: tuple[Tensor, ...]
    unmeasured: str


def part_of(module: Any, seen: Seen) -> Part:
    """What backends are asked to compute of a call.

    Args:
        module: the module that is called, a copy of the observed one.
        seen: the observed call.

    Raises:
        CellError: a cell computes what no backend could.
    """
    if not isinstance(module, Recurrent):
        call = lower(module, seen.input, seen.hx)
        why = "" if call.special is None else f"{_TORCH}: {call.special}"
        if (autocast := problem_under_autocast(call)) is not None:
            dtype = autocast.dtype
            why = f"nothing is measured under autocast: tune the model and x in {dtype}"
        return Part(call.spec, call.problem, call.weights, why)
    outer, weights = module._outer_spec(), tuple(module._tensors())
    given = seen.input, seen.hx, seen.reset, seen.reset_to
    found = lower_recurrent(module, *given, return_states=False)
    if not isinstance(found, str) and len(found) == 1:
        return Part(found[0].spec, found[0].problem, weights, "")
    prepared = prepare(outer, module._first_weight(), seen.input, seen.hx)
    problem = problem_of(prepared, initial_states(outer, prepared), weights)
    if isinstance(found, str):
        return Part(outer, problem, weights, f"the cell's own forward runs, step by step: {found}")
    why = (
        f"its {len(found)} layers are computed one by one, each on the backend that auto takes for "
        "it: tune a Recurrent of one of them"
    )
    return Part(outer, problem, weights, why)
