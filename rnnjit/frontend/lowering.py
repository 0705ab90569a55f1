"""Lowers a module and the arguments of a call to what the core computes.

Compiled modules and all tools lower calls here, so that `explain`, `tune` and `gradient_flow` work
on exactly the computation of a call. `Stream` has fixed shapes and prepares its steps itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend, States
from rnnjit.dispatch.choice import choose, fallback_for, special_context
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.frontend.arguments import (
    SPARSE,
    Prepared,
    Result,
    StateDtypeError,
    check_weights,
    dense_states,
    initial_states,
    prepare,
    restore,
    states_of,
)
from rnnjit.frontend.capture import capture, cell_of, is_quantized, weight_names, weights_of
from rnnjit.frontend.quantized_calls import apart, must_be_apart
from rnnjit.ir import CellSpec
from rnnjit.spec import Problem, RNNSpec, Rows

_STRIDED = torch.strided


class Call(NamedTuple):
    """One lowered call.

    Attributes:
        spec: the configuration of the module.
        prepared: the arguments, checked and laid out as rows.
        hx: the states that the call starts from, each `[L*D, B, P or H]`.
        weights: the current weights, in nn.RNN's flat order.
        problem: the properties by which a backend accepts or declines the call.
        special: why compiled code must not access the tensors, or None if it may.
    """

    spec: RNNSpec
    prepared: Prepared
    hx: States
    weights: tuple[Tensor, ...]
    problem: Problem
    special: str | None

    @property
    def x(self) -> Tensor:
        """The input as contiguous rows, `[N, I]`, or `[T, B, I]` for a dense batch."""
        return self.prepared.x

    @property
    def rows(self) -> Rows:
        """How the rows are laid over time."""
        return self.prepared.rows

    def restore(self, y: Tensor, h_n: States) -> Result:
        """Convert results to the form of the input."""
        return restore(self.spec, self.prepared, y, h_n)

    def choose(self, wanted: Backend | None) -> tuple[Backend, Fallback]:
        """Choose the backend that runs the call, and the fallback if it raises.

        Args:
            wanted: the backend that the user named, or None for "auto".

        Raises:
            UnsupportedError: `wanted` declines.
        """
        fallback = RAISE if self.special else fallback_for(self.spec, self.problem, wanted)
        return choose(self.spec, self.problem, wanted), fallback


def lower(module: nn.Module, x: Any, hx: Any) -> Call:
    """Lower a call of a layer or of a cell, which is one step of a layer.

    Args:
        module: a module that `capture` accepts.
        x: as in the module's `forward`.
        hx: as in the module's `forward`, or None.

    Raises:
        AttributeError, TypeError, ValueError, RuntimeError, IndexError: what the module's own
            `forward` raises for such arguments or weights.
    """
    if is_quantized(module) and must_be_apart(x):
        return apart(partial(lower, module), x, hx)
    if isinstance(module, nn.RNNCellBase):
        x, hx = as_sequence(x, hx, cell_of(module))
    return lower_sequence(module, x, hx)


def lower_sequence(module: nn.Module, x: Any, hx: Any) -> Call:
    """Like `lower`, but takes a layer's arguments, for a cell as well (see `as_sequence`)."""
    spec, weights = capture(module), weights_of(module)
    if spec.quantized:
        check_weights(spec, weight_names(module), weights)  # their dtype says that of x
    try:
        prepared = prepare(spec, weights[spec.typed_weight], x, hx)
    except StateDtypeError:
        check_weights(spec, weight_names(module), weights)  # torch may read them next
        raise
    if not spec.quantized:
        check_weights(spec, weight_names(module), weights)
    states = initial_states(spec, prepared)
    cell = isinstance(module, nn.RNNCellBase)
    problem = problem_of(prepared, states, weights, cell=cell)
    special = special_context(prepared.x, *states, *weights)
    return Call(spec, prepared, states, weights, problem, special)


def as_sequence(x: Any, hx: Any, cell: CellSpec) -> tuple[Tensor, Any]:
    """Convert a cell's arguments to those of a layer: x `[1, B, I]`, each state `[1, B, H]`.

    Args:
        x: `[B, I]`, or `[I]` unbatched.
        hx: as in the `forward` of torch's cell: one state, a tuple or list of several, or None.
        cell: what the cell computes.

    Returns:
        x, and one state, a tuple of several or None.

    Raises:
        AttributeError, IndexError, RuntimeError, TypeError: x or a state is no tensor, a state is
            sparse where torch does not take it, or there are too few states or too many.
    """
    batched = x.dim() == 2
    if hx is not None and len(cell.states) > 1:
        states = dense_states(cell, states_of(cell.states, hx, indexed=not batched))
        hx = tuple([_one_step(state, batched) for state in states])
    elif hx is not None:
        if hx.layout is not _STRIDED:
            (hx,) = dense_states(cell, (hx,))
        hx = _one_step(hx, batched)
    if x.layout is not _STRIDED and x.layout in SPARSE:
        x = x.to_dense(masked_grad=False)  # Eager cells take sparse input, eager layers do not.
    return _one_step(x, batched), hx


def _one_step(tensor: Tensor, batched: bool) -> Tensor:
    return tensor.unsqueeze(0) if batched else tensor[None, None]


def problem_of(
    prepared: Prepared, hx: States, weights: tuple[Tensor, ...], *, cell: bool = False
) -> Problem:
    """The properties of a call, of a cell or a layer, by which a backend accepts or declines it."""
    x, rows = prepared.x, prepared.rows
    packed, grad = prepared.packed is not None, needs_grad(x, hx, weights)
    where, index = x.device.type, x.get_device()
    return Problem(x.dtype, where, rows.T, rows.B, rows.N, packed, grad, index, cell)


def needs_grad(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> bool:
    """Whether a backward pass may follow a call with these tensors."""
    return torch.is_grad_enabled() and any([t.requires_grad for t in (x, *hx, *weights)])  # noqa: C419 - faster
