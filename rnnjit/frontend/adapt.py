"""`rnnjit.adapt`: describes a class whose `forward` is a Python loop over one of its methods."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rnnjit.cells import Cell

#: What stands for the input and the output among the names of `adapt`.
X, OUTPUT = "x", "y"


@dataclass(frozen=True)
class Adaptation:
    """How a class computes one step and lays out its own loop; made by `adapt`.

    Attributes:
        step: as in `adapt`.
        arguments: as in `adapt`.
        results: as in `adapt`.
        returns: as in `adapt`.
        batch_first: as in `adapt`.
        input_size: as in `adapt`.
        hidden_size: as in `adapt`.
    """

    step: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    returns: tuple[str, ...]
    batch_first: bool
    input_size: str
    hidden_size: str

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states, in the order of the step's arguments."""
        return tuple(name for name in self.arguments if name != X)


def adapt(
    step: str,
    *,
    arguments: Sequence[str] = (X, "h"),
    results: Sequence[str] | None = None,
    returns: Sequence[str] = (OUTPUT, "states"),
    batch_first: bool = False,
    input_size: str = "input_size",
    hidden_size: str = "hidden_size",
) -> Adaptation:
    """Describe a class whose `forward` calls one of its methods for each step.

    For `rnnjit.compile(model, cells={TheirCell: rnnjit.adapt("recurrence")})`, which replaces the
    loop. Its `forward(x, state=None)` must start from zeros if no state is given, and do nothing
    beside calling the step. The first call checks that, on three steps.

    Args:
        step: the name of the method that computes one step, of x `[B, I]` and states `[B, H]`.
        arguments: what it takes, in its order: "x", and a name for each state.
        results: what it returns, in its order: the names of the new states, and "y" if its output
            is none of them; by default all states. The output is "y" or else the first of them.
        returns: what `forward` returns: "y", the outputs of all steps, and "states", the last
            state `[B, H]` or a tuple of several.
        batch_first: whether its input and its outputs are `[B, T, ...]` rather than `[T, B, ...]`.
        input_size: the name of the attribute that is I, such as "input_size" or "layer.input_size".
        hidden_size: the same of H.

    Raises:
        TypeError: `step` is no string.
        ValueError: names are missing, double or unknown.

    Example:
        >>> adapt("recurrence", arguments=("h", "x")).states
        ('h',)
    """
    if not isinstance(step, str):
        raise TypeError(f"step must be the name of a method, got {step!r}")
    taken = tuple(arguments)
    states = tuple(name for name in taken if name != X)
    if len(taken) != len(set(taken)) or len(states) != len(taken) - 1 or not states:
        raise ValueError(f"arguments must be {X!r} and a name for each state, got {taken}")
    if OUTPUT in states:
        raise ValueError(f"arguments: {OUTPUT!r} is the output, not a state, got {taken}")
    given = states if results is None else tuple(results)
    if sorted(given) not in (sorted(states), sorted((*states, OUTPUT))):
        raise ValueError(
            f"results must be the states {states}, each once, and {OUTPUT!r} if the output is none "
            f"of them, got {given}"
        )
    wanted = tuple(returns)
    if wanted not in ((OUTPUT,), (OUTPUT, "states"), ("states", OUTPUT)):
        raise ValueError(f"returns must be {OUTPUT!r} and 'states', or {OUTPUT!r}, got {wanted}")
    return Adaptation(step, taken, given, wanted, batch_first, input_size, hidden_size)


def check_cells(cells: Any) -> Mapping[type, Adaptation]:
    """Check the `cells` argument of `compile`.

    Raises:
        TypeError: it is no mapping from classes of modules to what `adapt` returns.
        ValueError: a class has no such method.
    """
    if cells is None:
        return {}
    if not isinstance(cells, Mapping):
        raise TypeError(f"cells must be a dict, got {type(cells).__name__}")
    for cls, how in cells.items():
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"cells must have subclasses of nn.Module as keys, got {cls!r}")
        if not isinstance(how, Adaptation):
            raise TypeError(f"cells must have rnnjit.adapt(...) as values, got {how!r}")
        if not callable(getattr(cls, how.step, None)):
            raise ValueError(f"{cls.__name__} has no method {how.step!r}, which rnnjit.adapt names")
    return cells


def looks_like_a_loop(module: nn.Module) -> str:
    """The method of one step that a module's `forward` seems to loop over, or ""."""
    cls = type(module)
    if isinstance(module, Cell) or cls.__module__.startswith(("torch.", "rnnjit.")):
        return ""
    code = getattr(cls.forward, "__code__", None)
    if code is None or not any(each.opname == "FOR_ITER" for each in dis.get_instructions(code)):
        return ""
    for name in code.co_names:
        method: Any = inspect.getattr_static(cls, name, None)
        if name.startswith("__") or not inspect.isfunction(method) or hasattr(nn.Module, name):
            continue
        if len(inspect.signature(method).parameters) >= 3:  # self, x and a state
            return str(name)
    return ""
