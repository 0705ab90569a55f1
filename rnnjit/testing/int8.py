"""What layers of int8 matrices are held against: the reference, in any dtype, and its roundings.

Torch has no such layers. The standard is what `rnnjit.quantization` defines, computed in float64
from the same int8 matrices and scales. It rounds the rows of every step to integers, and so does a
backend, in float32. Both get the same integers as long as no number lies so near to the middle of
two that the rounding of float32 may take it across. The kit draws its cases so that none does: the
integers are then the same in all steps of all layers, and results differ by what float32 rounds
after the products, as those of float layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rnnjit.backend import Backend
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.execution.stack import run_stack
from rnnjit.frontend.arguments import Prepared, Result, initial_states, prepare, restore
from rnnjit.frontend.capture import weights_of
from rnnjit.frontend.quantized_recurrent import QuantizedRecurrent
from rnnjit.frontend.recurrent_layers import run_layers
from rnnjit.reference import ReferenceBackend
from rnnjit.spec import Problem, RNNSpec, Rows

#: How near to the middle of two integers a number is in doubt. The numbers are `v * (127 / m)`, m
#: the largest of their row. A row whose values are off by at most e*m gives numbers that are off by
#: 2*127*e. With this margin e may be 16 units in the last place of float32, the roundings of the
#: numbers themselves, some two of them, included. The table of tolerances allows outputs to be off
#: by some 7 of the largest of all rows.
MARGIN = 2 * 127 * 16 * torch.finfo(torch.float32).eps


class Contract:
    """A layer of int8 matrices, called as torch's own, in the dtype of its input.

    Args:
        spec: the layer, as its user calls it.
        module: has the weights; `rnnjit.quantize` made it.
    """

    def __init__(self, spec: RNNSpec, module: nn.Module) -> None:
        self._spec, self._module = spec, module

    @torch.no_grad()
    def __call__(self, x: Any, hx: Any = None) -> Result:
        """The result, unrecorded."""
        return self._run(self._prepared(x, hx))

    @torch.no_grad()
    def doubtful(self, x: Any, hx: Any = None) -> Tensor:
        """Which sequences have a number in doubt (`MARGIN`): bool `[B]`, in the caller's order."""
        prepared = self._prepared(x, hx)
        with _Roundings(prepared.rows) as roundings:
            self._run(prepared)
        found: Tensor = roundings.doubtful
        order = None if prepared.packed is None else prepared.packed.unsorted_indices
        return found if order is None else found[order.to(found.device)]

    def _prepared(self, x: Any, hx: Any) -> Prepared:
        return prepare(self._spec, x.data, x, hx)  # x says what dtype the weights stand for

    def _run(self, prepared: Prepared) -> Result:
        spec, module, x, rows = self._spec, self._module, prepared.x, prepared.rows
        states = initial_states(spec, prepared)
        if isinstance(module, QuantizedRecurrent):
            owners = [module] * (spec.num_layers * spec.num_directions)
            y, h_n, _ = run_layers(module._int8_plan, owners, rows, x, states, 0.0, _by_reference)
        else:
            weights = weights_of(module)
            y, h_n = run_stack(ReferenceBackend(), spec, rows, x, states, weights, False, False)
        return restore(spec, prepared, y, h_n)


def _by_reference(spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
    return ReferenceBackend(), RAISE


class _Roundings(TorchFunctionMode):
    """Within it, the numbers that are rounded are looked at.

    Attributes:
        doubtful: bool `[B]`, whether a number of a sequence, in the order of the rows, is in doubt.
    """

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self._of_row = torch.cat(
            [torch.arange(size, dtype=torch.int64, device="cpu") for size in rows.sizes]
        )
        self.doubtful = torch.zeros(rows.B, dtype=torch.bool, device="cpu")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation of torch."""
        if func in (torch.round, torch.Tensor.round):
            self._look(args[0])
        return func(*args, **(kwargs or {}))

    def _look(self, rows: Tensor) -> None:
        away = (rows - rows.floor() - 0.5).abs()
        # The middle itself is no doubt: float32 has it exactly, where a case is made of such.
        found = ((away < MARGIN) & (away > 0)).any(1).cpu()
        if len(found) in (len(self._of_row), *range(len(self.doubtful) + 1)):
            # All rows of x at once, or those of one step.
            self.doubtful[self._of_row[: len(found)][found]] = True
        else:
            self.doubtful |= found.any()  # many steps: the reference multiplies some at a time
