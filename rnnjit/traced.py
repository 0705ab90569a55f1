"""What torch.compile and torch.export meet in a compiled module: one operator for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import rnnjit.ops  # noqa: F401 - registers the operator
from rnnjit.backend import Backend, LayerOutput
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class TracedBackend(Backend):
    """Puts `rnnjit::layer` into the graph that is being traced."""

    name = "traced"
    differentiable = True

    def __init__(self, key: str) -> None:
        self.key = key

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Never declines: the choice falls when the graph runs."""
        return []

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The layer as one node."""
        y, h_n = torch.ops.rnnjit.layer(
            x, rows.batch_sizes, rows.T, h0, list(weights), layer.cell, layer.bias, keep, self.key
        )
        return LayerOutput(y, h_n)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


# Calls a function outside the graph that is being traced, which breaks there.
untraced: Callable[..., Any] = torch.compiler.disable(  # type: ignore[no-untyped-call]  # torch has no types here
    _call, reason="the sizes of a packed batch are not known while tracing"
)
