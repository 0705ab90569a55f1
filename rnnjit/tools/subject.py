"""What a comparison needs to know of the module that it compares on all backends."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from rnnjit.dispatch.choice import choose
from rnnjit.frontend.arguments import as_hx
from rnnjit.frontend.capture import capture
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.recurrent_lowering import lower_recurrent
from rnnjit.reference import BACKEND as EAGER
from rnnjit.spec import Problem, RNNSpec
from rnnjit.tools.call import Call


class Subject(NamedTuple):
    """A layer of torch, or a `Recurrent`.

    Attributes:
        name: of what the module runs itself: "nn.LSTM", or the class of the user's cell.
        runs: what that is, for people.
        spec: the configuration that is shown.
    """

    name: str
    runs: str
    spec: RNNSpec


def subject_of(module: nn.Module) -> Subject:
    """Describe a module."""
    if isinstance(module, Recurrent):
        spec = module._outer_spec()
        return Subject(spec.cell.name, "the cell's own forward, step by step", spec)
    return Subject(f"nn.{type(module).__name__}", "PyTorch's own layer", capture(module))


def parts_of(
    module: Any, call: Call, *, training: bool, needs_grad: bool
) -> tuple[tuple[RNNSpec, Problem], ...]:
    """What backends are asked to compute of a call: layers, or a stack of layers.

    Args:
        module: the module; left in the mode that `training` says.
        call: the call.
        training: the mode.
        needs_grad: whether a backward pass follows.

    Raises:
        CellError: a cell computes what no backend could.
    """
    if not isinstance(module, Recurrent):
        return ((capture(module), call.problem(needs_grad=needs_grad)),)
    module.train(training)
    reset, reset_to = call.options.get("reset"), call.options.get("reset_to")
    every = bool(call.options.get("return_states"))
    found = lower_recurrent(module, call.input, as_hx(call.hx), reset, reset_to, every)
    if isinstance(found, str):  # the cell's own forward runs, whichever backend is asked for
        return ()
    return tuple((each.spec, each.problem._replace(needs_grad=needs_grad)) for each in found)


def chosen_by_auto(parts: tuple[tuple[RNNSpec, Problem], ...]) -> str:
    """The names of the backends that `auto` takes, of several layers each once."""
    names = dict.fromkeys(choose(*part, None).name for part in parts)
    return " and ".join(names) or EAGER.name
