"""The guarded fast path for repeated dense calls, with or without gradients.

A streaming step takes a few microseconds, so its checks must be cheap. A `FastPath` caches the
results of the checks of a first call. At every further call, the guards of torch's compiler compare
the tensors and the global state with those of the first call. A call that differs takes the full
path, which makes all checks and raises all errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.backend import Shortcut, States
from rnnjit.runtime.torch_private import (
    GlobalStateGuard,
    dispatch_mode,
    forward_mode,
    function_mode,
    parameters_of,
    tensor_guards,
)

#: Elements of states of zeros that are kept.
_KEPT_ZEROS = 4096


class FastPath:
    """Calls of one module with one kind of input and state.

    Attributes:
        run: computes the calls.
        weights_of: gets the weights from the module's tensors by name, in nn.RNN's order.
        shapes: the shape of each state.
        tensors: checks that x, the states and the weights match, see `tensor_guards`.
        zeros: states of zeros, kept for calls without a state, since no backend writes to them.
            None if they are large; on a GPU, whose streams would have to wait for them; and where
            calls may be recorded: what autograd saves, hooks and the graph's nodes give away.
        surroundings: checks that grad mode, autocast, torch's thread count and the like match.
    """

    __slots__ = (
        *("_held", "_keeps_zeros", "run", "shapes", "surroundings", "tensors"),
        *("weights_of", "zeros"),
    )

    def __init__(
        self,
        run: Shortcut,
        names: list[str],
        x: Tensor,
        hx: States,
        weights: tuple[Tensor, ...],
        held: Callable[[nn.Module], Mapping[str, Any]] = parameters_of,
    ) -> None:
        self.run = run
        self._held = held
        self.weights_of: Any = itemgetter(*names)
        self.shapes = tuple(state.shape for state in hx)
        self.zeros: States | None = None
        self._keeps_zeros = not torch.is_grad_enabled() and x.is_cpu and _are_small(hx)
        self.surroundings = GlobalStateGuard()
        self.tensors = tensor_guards((x, *hx, *weights))

    def __deepcopy__(self, memo: object) -> FastPath:
        # It holds no reference to a module, so that copies of the module can share it.
        return self

    def __call__(self, module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, States] | None:
        """Return `(y, h_n)`, or None if this call does not match.

        Args:
            module: the module that is called.
            x: the input in the caller's form.
            hx: the initial state in the caller's form: None, a tensor, or several in a tuple or
                list.
        """
        # The guards detect neither dual tensors of forward-mode differentiation nor function modes,
        # and not every dispatch mode: FakeTensorMode, whose tensors have no memory, passes them.
        if forward_mode() or function_mode() or dispatch_mode() or not self.surroundings.check():
            return None
        given = hx is not None
        if not given:
            try:
                hx = self.zeros or tuple([x.new_zeros(shape) for shape in self.shapes])
            except RuntimeError:
                return None  # a dtype without zeros
        else:
            if len(self.shapes) == 1:
                hx = (hx,)
            elif type(hx) is list:
                hx = tuple(hx)
            if type(hx) is not tuple or len(hx) != len(self.shapes):
                return None
            for state in hx:
                if getattr(state, "is_nested", True):
                    return None  # The guards crash on strides of nested tensors.
        try:
            weights = self.weights_of(self._held(module))
        except KeyError:
            return None
        if not self.tensors(x, *hx, *weights) and not self._fit_as_aliases(x, hx, weights):
            return None
        if self._keeps_zeros and not given:
            self.zeros = hx
        return self.run(x, hx, weights)

    def _fit_as_aliases(self, x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> bool:
        """Whether tensors of which one stands twice match; the guards refuse the second.

        `cell(x, (h, h))` with zeros for both states is an example.
        """
        given = x, *hx
        if len({*map(id, given)}) == len(given):
            return False
        if any([each.layout is not torch.strided or each.is_nested for each in given]):  # noqa: C419 - faster
            return False  # these have no views
        return self.tensors(*[tensor.view_as(tensor) for tensor in given], *weights)


def _are_small(states: States) -> bool:
    """Whether zeros of this size are worth keeping."""
    return sum(state.numel() for state in states) <= _KEPT_ZEROS
