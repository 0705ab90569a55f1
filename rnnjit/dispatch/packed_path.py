"""The guarded fast path for repeated calls with packed input on the CPU.

The tensors of a call are compared with those of a first call as in `fast_path`, but for the number
of rows, steps and sequences, which differ from batch to batch. The values of the batch sizes and of
the permutations are checked at every call. A call that differs, or whose values do not fit, takes
the full path, which raises all errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.runtime.torch_private import (
    HAS_GUARDS,
    GlobalStateGuard,
    dispatch_mode,
    forward_mode,
    function_mode,
    tensor_guards,
)
from rnnjit.spec import Rows

#: `(x [N, I], rows, hx, weights) -> (y [N, D*P], h_n)` for a whole stack.
PackedRun = Callable[[Tensor, Rows, States, tuple[Tensor, ...]], tuple[Tensor, States]]


def may_be_guarded(packed: PackedSequence, given: States | None, rows: Rows) -> bool:
    """Whether calls like this one, which compiled code has run, may have a `PackedPath`.

    Args:
        packed: the input.
        given: the states that the caller gave, or None.
        rows: how its rows are laid over time.
    """
    if not HAS_GUARDS or type(packed) is not PackedSequence:
        return False
    data, _, order, back = packed
    if (order is None) is not (back is None):
        return False  # the result would get the permutation that is missing
    if order is not None and back is not None and 0 in (order.dim(), back.dim()):
        return False  # of one sequence; there is no dimension that may vary
    tensors = (data, *(given or ()))
    strided = all([tensor.layout is torch.strided for tensor in tensors])  # noqa: C419 - faster
    return strided and data.is_cpu and len(data) == rows.N > 0


class PackedPath:
    """Calls of one module with packed input of one kind, with a state or without.

    Attributes:
        run: computes the calls.
        weights_of: gets the weights from the module's tensors by name, in nn.RNN's order.
        shapes: L*D and the features of each state.
        ordered: whether the input has permutations.
        surroundings: as in `FastPath`.
        tensors: checks that the parts of the input and the weights match, see `tensor_guards`.
        states: checks that the states match; None if none are given.
    """

    __slots__ = (
        "_held",
        "ordered",
        "run",
        "shapes",
        "states",
        "surroundings",
        "tensors",
        "weights_of",
    )

    def __init__(
        self,
        run: PackedRun,
        names: list[str],
        packed: PackedSequence,
        hx: States,
        given: States | None,
        weights: tuple[Tensor, ...],
        held: Callable[[nn.Module], Mapping[str, Any]],
    ) -> None:
        self.run = run
        self._held = held
        self.weights_of: Any = itemgetter(*names)
        self.shapes = [(state.shape[0], state.shape[2]) for state in hx]
        self.ordered = packed.sorted_indices is not None
        parts = tuple([part for part in packed if part is not None])
        self.surroundings = GlobalStateGuard()
        self.tensors = tensor_guards((*parts, *weights), (0,) * len(parts))
        self.states = None if given is None else tensor_guards(given, (1,) * len(given))

    def __deepcopy__(self, memo: object) -> PackedPath:
        # It holds no reference to a module, so that copies of the module can share it.
        return self

    def __call__(
        self, module: nn.Module, packed: PackedSequence, hx: Any
    ) -> tuple[PackedSequence, States] | None:
        """Return `(y, h_n)`, or None if this call does not match.

        Args:
            module: the module that is called.
            packed: the input.
            hx: the initial state in the caller's form, as in `FastPath`.
        """
        # As in `FastPath`.
        if forward_mode() or function_mode() or dispatch_mode() or not self.surroundings.check():
            return None
        data, sizes, order, back = packed
        parts: Any = packed if self.ordered else (data, sizes)
        if not self.ordered and (order is not None or back is not None):
            return None
        for part in parts:
            if type(part) is not Tensor or part.is_nested:
                return None
        try:
            weights = self.weights_of(self._held(module))
        except KeyError:
            return None
        if not self.tensors(*parts, *weights):
            return None
        counts = sizes.tolist()
        if not _fit(counts, parts):
            return None
        states = self._states(data, counts[0], order, hx)
        if states is None:
            return None
        # A copy, since the backward pass trusts these numbers long after they were checked.
        rows = Rows(len(counts), counts[0], len(data), sizes.clone())
        y, h_n = self.run(data.contiguous(), rows, states, weights)
        if back is not None:
            h_n = tuple([state.index_select(1, back) for state in h_n])
        return PackedSequence._make((y, sizes, order, back)), h_n

    def _states(self, data: Tensor, batch: int, order: Tensor | None, hx: Any) -> States | None:
        """The states that a call starts from, in the order of the rows; None for a misfit."""
        if (hx is None) is not (self.states is None):
            return None
        if self.states is None:
            return tuple([data.new_zeros((count, batch, width)) for count, width in self.shapes])
        if len(self.shapes) == 1:
            hx = (hx,)
        if type(hx) not in (tuple, list) or len(hx) != len(self.shapes):
            return None
        for state in hx:
            if getattr(state, "is_nested", True):
                return None  # The guards crash on strides of nested tensors.
        if not self.states(*hx) or any([state.shape[1] != batch for state in hx]):  # noqa: C419 - faster
            return None
        return tuple(hx) if order is None else tuple([s.index_select(1, order) for s in hx])


def _fit(counts: list[int], parts: tuple[Tensor, ...]) -> bool:
    """Whether batch sizes and permutations have values that fit the data.

    Args:
        counts: the batch sizes.
        parts: the data, the batch sizes, and perhaps both permutations.
    """
    if not counts or counts[-1] < 1 or sum(counts) != len(parts[0]):
        return False
    if counts != sorted(counts, reverse=True):
        return False
    batch = counts[0]
    for order in parts[2:]:
        numbers = order.tolist()
        if len(numbers) != batch or min(numbers) < 0 or max(numbers) >= batch:
            return False
    return True
