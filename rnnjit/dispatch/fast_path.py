"""The guarded fast path of calls like one before: dense, with gradients or without.

A streaming step takes a few microseconds, and so little may be spent on checking it. A `FastPath`
remembers what the checks of a first call found, for tensors and surroundings that torch's own
guards, those of its compiler, compare anew at every call; whatever is unlike takes the full path,
which checks all and words every error.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from torch import Tensor, nn

from rnnjit.backend import Shortcut, States
from rnnjit.runtime.torch_private import (
    GlobalStateGuard,
    forward_mode,
    parameters_of,
    tensor_guards,
)


class FastPath:
    """Calls of one module with one kind of input and state.

    Attributes:
        run: computes them.
        weights_of: from the module's parameters to its weights, in nn.RNN's order.
        shapes: of each state.
        tensors: whether x, the states and the weights are as they were, see `tensor_guards`.
        surroundings: whether grad mode, autocast, torch's thread count and the like are.
    """

    __slots__ = ("run", "shapes", "surroundings", "tensors", "weights_of")

    def __init__(
        self,
        run: Shortcut,
        names: list[str],
        x: Tensor,
        hx: States,
        weights: tuple[Tensor, ...],
    ) -> None:
        self.run = run
        self.weights_of: Any = itemgetter(*names)
        self.shapes = tuple(state.shape for state in hx)
        self.surroundings = GlobalStateGuard()
        self.tensors = tensor_guards((x, *hx, *weights))

    def __deepcopy__(self, memo: object) -> FastPath:
        # It holds nothing of the module that it is called with, so that a copy may share it.
        return self

    def __call__(self, module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, States] | None:
        """The result `(y, h_n)`, or None if this call is of another kind.

        Args:
            module: whose call it is.
            x: the input in the caller's form.
            hx: the initial state in the caller's form: None, a tensor, or a tuple of several.
        """
        # Dual tensors of forward-mode differentiation are the one thing that guards do not see.
        if forward_mode() or not self.surroundings.check():
            return None
        if hx is None:
            try:
                hx = tuple([x.new_zeros(shape) for shape in self.shapes])
            except RuntimeError:
                return None  # a kind of numbers that has no zeros
        else:
            if len(self.shapes) == 1:
                hx = (hx,)
            elif type(hx) is not tuple or len(hx) != len(self.shapes):
                return None
            for state in hx:
                if getattr(state, "is_nested", True):
                    return None  # The guards would end the process, asking it for strides.
        try:
            weights = self.weights_of(parameters_of(module))
        except KeyError:
            return None
        if not self.tensors(x, *hx, *weights):
            return None
        return self.run(x, hx, weights)
