"""Lowers a module and the arguments of a call to what the core computes.

Compiled modules and all tools lower calls here, so that `explain`, `tune` and `gradient_flow` work
on exactly the computation of a call. `Stream` has fixed shapes and prepares its steps itself.
"""

from __future__ import annotations

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
    check_weights,
    initial_states,
    prepare,
    restore,
)
from rnnjit.frontend.capture import capture, weight_names, weights_of
from rnnjit.spec import Problem, RNNSpec, Rows


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
    if isinstance(module, nn.RNNCellBase):
        x, hx = as_sequence(x, hx)
    return lower_sequence(module, x, hx)


def lower_sequence(module: nn.Module, x: Any, hx: Any) -> Call:
    """Like `lower`, but takes a layer's arguments, for a cell as well (see `as_sequence`)."""
    spec, weights = capture(module), weights_of(module)
    prepared = prepare(spec, weights[0], x, hx)
    check_weights(spec, weight_names(module), weights)
    states = initial_states(spec, prepared)
    problem = _problem(prepared, states, weights)
    special = special_context(prepared.x, *states, *weights)
    return Call(spec, prepared, states, weights, problem, special)


def as_sequence(x: Any, hx: Any) -> tuple[Tensor, Tensor | None]:
    """Convert a cell's arguments to those of a layer: x `[1, B, I]`, hx `[1, B, H]`."""
    if x.layout in SPARSE:
        x = x.to_dense(masked_grad=False)  # Eager cells take sparse input, eager layers do not.
    if hx is not None and hx.layout in SPARSE:
        hx = hx.to_dense(masked_grad=False)
    batched = x.dim() == 2
    x = x.unsqueeze(0) if batched else x[None, None]
    if hx is not None:
        hx = hx.unsqueeze(0) if batched else hx[None, None]
    return x, hx


def _problem(prepared: Prepared, hx: States, weights: tuple[Tensor, ...]) -> Problem:
    """The properties of a call by which a backend accepts or declines it."""
    x, rows = prepared.x, prepared.rows
    packed, grad = prepared.packed is not None, needs_grad(x, hx, weights)
    where, index = x.device.type, x.get_device()
    return Problem(x.dtype, where, rows.T, rows.B, rows.N, packed, grad, index)


def needs_grad(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> bool:
    """Whether a backward pass may follow a call with these tensors."""
    return torch.is_grad_enabled() and any([t.requires_grad for t in (x, *hx, *weights)])  # noqa: C419 - faster
