"""The part of a CPU backend that does not depend on its compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rnnjit.backend import (
    Backend,
    LayerGrads,
    LayerOutput,
    Needs,
    Shortcut,
    States,
    Training,
    values_read,
)
from rnnjit.codegen.computed import computed
from rnnjit.codegen.deferral import why_torch
from rnnjit.codegen.pointwise import OPERATIONS
from rnnjit.ir.rebuilt_output import rebuilt_output
from rnnjit.ir.torch_evaluator import evaluate_tensors
from rnnjit.runtime.compile_once import imported
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class CPUBackend(Backend):
    """Layers on the CPU: one compiled kernel per layer and pass.

    Class attributes:
        run_module: name of the module that plans and calls the kernels, imported on first use. It
            has `forward(layer, rows, x, hx, weights, keep)`, `backward(layer, rows, x, hx, weights,
            output, grad_y, grad_h_n, needs)`, `forward_states` and `backward_states`, which take
            what `rnnjit.Backend`'s do, `shortcut(dtype, layers, rows, y_shape)` and
            `training(dtype, layer, rows, needs, y_shape)`, as in `rnnjit.Backend`.
    """

    devices = ("cpu",)
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)
    operations = OPERATIONS
    sizes_matter = False
    run_module: ClassVar[str]

    def defers(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Leaves calls to torch that are bound by reading the weights, see `deferral`."""
        return why_torch(spec, problem)

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One call of the forward kernel."""
        run: Any = imported(self.run_module)
        output: LayerOutput = run.forward(layer, rows, x, hx, weights, keep)
        return output

    def backward_reads(
        self, layer: LayerSpec, rows: Rows, output: LayerOutput, needed: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """See `rnnjit.backend.values_read`."""
        return values_read(layer, rows.T > 1, needed)

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """One call of the backward kernel."""
        run: Any = imported(self.run_module)
        grads: LayerGrads = run.backward(
            *(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        )
        return grads

    def rebuilds_output(self, layer: LayerSpec) -> bool:
        """Whether the output is an exact function of a state, whose values are saved."""
        return not layer.proj_size and rebuilt_output(layer.cell) is not None

    def carried_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What kernels compute with."""
        return computed(dtype)

    def rebuilt_output(
        self, layer: LayerSpec, saved: tuple[Tensor, ...], dtype: torch.dtype
    ) -> Tensor:
        """The output of all rows at once, by torch."""
        found = rebuilt_output(layer.cell)
        assert found is not None, "`rebuilds_output` said so"
        # See `forward_call.saved_sizes`.
        states = saved[1:] if layer.cell.saved else saved
        (y,) = evaluate_tensors(found.program, [states[found.state - 1]])
        assert y is not None
        return y.to(dtype)

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """The kernels write the states of every step in the pass that computes them."""
        return True

    def forward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """One call of the forward kernel."""
        run: Any = imported(self.run_module)
        output: LayerOutput = run.forward_states(layer, rows, x, hx, weights, keep)
        return output

    def backward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        grad_states: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """One call of the backward kernel."""
        run: Any = imported(self.run_module)
        grads: LayerGrads = run.backward_states(
            *(layer, rows, x, hx, weights, output, grad_y, grad_h_n, grad_states, needs)
        )
        return grads

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """One call of the forward kernel per layer, with no overhead except allocations.

        None for cells with row inputs, which are no part of the output of the layer below.
        """
        if problem.needs_grad or spec.cell.row_inputs:
            return None
        run: Any = imported(self.run_module)
        rows = Rows(problem.T, problem.B, problem.N)
        found: Shortcut = run.shortcut(problem.dtype, spec.layers, rows, y_shape)
        return found

    def cell_shortcut(self, spec: RNNSpec, problem: Problem) -> Shortcut | None:
        """As `shortcut`: what it allocates has the shape of the states that it gets."""
        return self.shortcut(spec, problem, (1, problem.B, spec.hidden_size))

    def training(self, layer: LayerSpec, problem: Problem, needs: Needs) -> Training | None:
        """One call of a kernel in each direction, with no overhead except allocations."""
        run: Any = imported(self.run_module)
        rows = Rows(problem.T, problem.B, problem.N)
        y_shape = problem.T, problem.B, layer.num_directions * layer.output_size
        found: Training = run.training(problem.dtype, layer, rows, needs, y_shape)
        return found
