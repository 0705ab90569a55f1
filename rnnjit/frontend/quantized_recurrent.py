"""A compiled `Recurrent` whose matrices are int8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, SupportsIndex, cast

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend
from rnnjit.dispatch.choice import special_context
from rnnjit.dispatch.fallback import GENERATION, RAISE, Fallback
from rnnjit.frontend.arguments import check_weights, initial_states, prepare
from rnnjit.frontend.capture import quantized_names
from rnnjit.frontend.cell_store import suffix_of
from rnnjit.frontend.compiled_recurrent import CompiledRecurrent
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.quantized_modules import check_loaded
from rnnjit.frontend.recurrent import Recurrent, restored
from rnnjit.frontend.recurrent_layers import run_layers
from rnnjit.frontend.recurrent_plan import LayerPlan, Plan, make_plan
from rnnjit.ir import CellSpec
from rnnjit.quantization import quantize_matrix
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import never_traced
from rnnjit.spec import Problem, RNNSpec


class FixedCell(NamedTuple):
    """What a direction computes, as `TracedCell`, with weights that a module holds by name.

    Attributes:
        spec: the cell as it was written.
        names: of the weights, in the order of `LayerSpec.weight_shapes`.
        draws: none.
    """

    spec: CellSpec
    names: tuple[str, ...]
    draws: tuple[()] = ()

    def weights(self, owner: nn.Module) -> tuple[Tensor, ...]:
        """The current weights of the module that owns them."""
        return tuple([getattr(owner, name) for name in self.names])


class QuantizedRecurrent(CompiledRecurrent):
    """A `Recurrent` of int8 matrices: what its cells computed when it was quantized.

    Made by `rnnjit.quantize`, never directly. The cells were traced in evaluation mode; assignments
    to their attributes, and the mode, do not change what they compute. Calls are those of
    `Recurrent.forward`, with input and states of float32.
    """

    _int8_plan: Plan

    @never_traced
    def _compiled(self, x: Any, hx: Any, reset: Any, reset_to: Any, return_states: Any) -> Any:
        if FORK.forked and needs_one_thread():
            with one_thread():
                return self._compiled(x, hx, reset, reset_to, return_states)
        if self._generation != GENERATION.now:
            self._forget_choices()
        outer = self._outer_spec()
        self._check_own()
        prepared = prepare(outer, self._first_weight(), x, hx)
        states = initial_states(outer, prepared)
        cuts = self._checked_resets(outer, x, reset, reset_to)
        if cuts is not None and not (cuts.mask.numel() and cuts.mask.any()):
            cuts = None
        by_torch = overriding(self, x, hx) or special_context(prepared.x, *states, *self._tensors())
        result = run_layers(
            *(self._int8_plan, [self] * len(self._directions()), prepared.rows, prepared.x, states),
            *(self.dropout if self.training else 0.0, _by_torch if by_torch else self._chosen),
            cuts,
            every=return_states,
        )
        every = result.states if return_states else None
        return restored(outer, prepared, result.y, result.h_n, every)

    def _chosen(self, spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
        return self._choice_for(spec, problem, self._choices)

    def _directions(self) -> list[FixedCell]:
        return [
            cast("FixedCell", each) for layer in self._int8_plan.layers for each in layer.traced
        ]

    def _check_own(self) -> None:
        """Check the weights, which users may replace."""
        for layer in self._int8_plan.layers:
            cells = [cast("FixedCell", each) for each in layer.traced]
            names = [name for cell in cells for name in cell.names]
            check_weights(layer.spec, names, tuple([getattr(self, name) for name in names]))

    def _outer_spec(self) -> RNNSpec:
        return super()._outer_spec().in_int8()

    def _first_weight(self) -> Tensor:
        first = self._directions()[0]
        found: Tensor = getattr(self, first.names[self._int8_plan.layers[0].spec.typed_weight])
        return found

    def _tensors(self) -> list[Tensor]:
        return [tensor for each in self._directions() for tensor in each.weights(self)]

    def _get_name(self) -> str:
        return "QuantizedRecurrent"

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle as any module: pickle finds this class, whose parent's are made at run time."""
        return object.__reduce_ex__(self, protocol)


def _by_torch(spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
    return ReferenceBackend(), RAISE


def int8_plan(module: CompiledRecurrent) -> Plan | str:
    """What the cells of a module compute in evaluation mode, or why it cannot be quantized.

    Raises:
        CellError: a cell computes what no backend could.
    """
    if module._source_class is not Recurrent:
        return "it is of a subclass of Recurrent, whose own code may use its float matrices"
    training = module.training
    module.training = False
    try:
        plan = make_plan(module, module._store)
    finally:
        module.training = training
    if any(each.spec.row_inputs or each.draws for layer in plan.layers for each in layer.traced):
        return "its cell draws random numbers, or computes more of x than one product"
    return plan


def quantized_recurrent(module: CompiledRecurrent, plan: Plan) -> Callable[[], None]:
    """What gives a compiled `Recurrent` int8 matrices in the place of its cells' tensors.

    Args:
        module: the module.
        plan: as `int8_plan` returns it.

    Raises:
        ValueError: a weight is not float32, or has values that are not finite.
    """
    cells, layers = iter(module._store.bind(module)), []
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(plan.layers):
        fixed = []
        for direction, traced in enumerate(layer.traced):
            names = _names(layer, suffix_of(index, direction))
            with torch.no_grad():
                weights = traced.weights(next(cells))
            tensors |= _quantized(names, weights)
            fixed.append(FixedCell(traced.spec, (*names, *quantized_names(names[:2])[2:])))
        layers.append(LayerPlan(layer.spec.in_int8(), cast("Any", tuple(fixed)), layer.form))
    return partial(_become, module, Plan(tuple(layers), None), tensors)


def _become(module: CompiledRecurrent, plan: Plan, tensors: dict[str, Tensor]) -> None:
    for name in {name for own in module._store.names for name in own.values()}:
        delattr(module, name)
    # Not by assignment: a compiled module takes that for the class that it was made from.
    object.__setattr__(module, "__class__", QuantizedRecurrent)
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    vars(module).update(_quantized=True, _int8_plan=plan)
    module.register_load_state_dict_pre_hook(check_loaded)  # type: ignore[no-untyped-call]  # as in torch
    module._forget_choices()


def _names(layer: LayerPlan, suffix: str) -> list[str]:
    """The names of a direction's weights, in the order of a float layer."""
    biases = ["bias_ih", "bias_hh"] if layer.spec.bias else []
    kinds = ["weight_ih", "weight_hh", *biases, *layer.form.cell.parameters]
    return [kind + suffix for kind in kinds]


def _quantized(names: list[str], weights: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The tensors of a direction by name, from its float weights."""
    found: dict[str, Tensor] = {}
    for name, weight in zip(names, weights, strict=True):
        if weight.dtype is not torch.float32:
            raise ValueError(f"{name} must be torch.float32 to be quantized, got {weight.dtype}")
        if name not in names[:2]:
            found[name] = weight.detach().clone()
            continue
        try:
            matrix = quantize_matrix(weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        found |= {name: matrix.values, f"{name}_scale": matrix.scale, f"{name}_sum": matrix.sums}
    return found
