"""What compiled calls of a `Recurrent` need of its cells: traced once, and kept.

Each direction of each layer is traced. A layer is what backends compute: the normal form of its
cell (`rnnjit.ir.normal_form`), whose weights and row inputs come from the cell's tensors by torch's
operators. Layers of one cell, without row inputs, form a stack, as those of an nn.LSTM do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rnnjit.backend import States
from rnnjit.cells import TracedCell, trace_cell
from rnnjit.frontend.cell_store import CellStore
from rnnjit.ir import CellSpec, NormalForm, normal_form
from rnnjit.ir.gradient_paths import reach_everything
from rnnjit.ir.torch_evaluator import evaluate_tensors
from rnnjit.spec import RNNSpec


class LayerPlan(NamedTuple):
    """One layer.

    Attributes:
        spec: the layer alone, with the normal form of its cell.
        traced: the cell of each direction.
        form: how the states of the user's cell and those of the normal form belong together.
    """

    spec: RNNSpec
    traced: tuple[TracedCell, ...]
    form: NormalForm

    def initial(self, hx: States, weights: Sequence[Tensor]) -> States:
        """The states that the normal form starts from.

        Args:
            hx: each state of the user's cell, `[K, B, H]`; K directions of one or more layers.
            weights: those of these directions.
        """
        return initial(self.form, hx, weights)


class Stack(NamedTuple):
    """Layers that differ in their weights alone, and need nothing but x, states and weights.

    Attributes:
        form: as in `LayerPlan`, of every layer.
        bias: whether the layers have biases.
        whole: whether all results require a gradient if anything does.
        names: the flat name of each weight, if these are the parameters, all of them; else None.
    """

    form: NormalForm
    bias: bool
    names: tuple[str, ...] | None
    whole: bool

    @property
    def keeps_states(self) -> bool:
        """Whether the states of the normal form are those of the user's cell."""
        return self.form.initial is None and self.form.states == tuple(range(len(self.form.states)))


class Plan(NamedTuple):
    """All layers.

    Attributes:
        layers: from first to last.
        stack: all of them as one, or None if they are not.
    """

    layers: tuple[LayerPlan, ...]
    stack: Stack | None

    def __deepcopy__(self, memo: object) -> Plan:
        # It holds no tensor, and nothing of a module.
        return self

    def weights(self, cells: Sequence[Any]) -> tuple[Tensor, ...]:
        """The weights of all layers, in nn.RNN's flat order, from cells with their tensors."""
        found: list[Tensor] = []
        traced = (each for layer in self.layers for each in layer.traced)
        for each, cell in zip(traced, cells, strict=True):
            found += each.weights(cell)
        return tuple(found)


def untraceable(weight: Tensor) -> str:
    """Why no step with such tensors can be traced, or ""."""
    return "the tensors are on meta, and have no values" if weight.is_meta else ""


def make_plan(module: Any, store: CellStore) -> Plan:
    """Trace the cells of a `Recurrent` in its current mode.

    Raises:
        CellError: a cell computes what no backend could.
        ValueError: the directions of a layer compute different cells.
    """
    cells, D = store.bind(module), module.num_directions
    traced = tuple([trace_cell(cell) for cell in cells])
    layers = []
    for index in range(module.num_layers):
        own = traced[index * D : (index + 1) * D]
        if any(_kind(each) != _kind(own[0]) for each in own):
            raise ValueError(
                f"the two directions of layer {index} compute different cells, since attributes of "
                "one were changed (Recurrent.cells): compile with backend='eager'"
            )
        layers.append(layer_plan(module.hidden_size, own))
    return Plan(tuple(layers), _stack(module, layers, traced, cells, store))


def layer_plan(hidden_size: int, traced: tuple[TracedCell, ...]) -> LayerPlan:
    """A layer whose directions have these cells, which compute the same."""
    first, directions = traced[0], len(traced)
    form = normal_form(first.spec)
    spec = RNNSpec(
        *(first.input_size, hidden_size, 1, form.cell, first.bias), bidirectional=directions == 2
    )
    return LayerPlan(spec, traced, form)


def _kind(traced: TracedCell) -> tuple[Any, ...]:
    return traced.spec, traced.input_size, traced.bias


def _stack(
    module: Any,
    layers: Sequence[LayerPlan],
    traced: Sequence[TracedCell],
    cells: Sequence[Any],
    store: CellStore,
) -> Stack | None:
    first = layers[0]
    below = module.num_directions * module.hidden_size
    for index, layer in enumerate(layers):
        own = layer.traced[0]
        alike = own.spec == first.traced[0].spec and own.bias == first.traced[0].bias
        whole = own.input_size == (below if index else module.input_size)
        drawing = any(each.draws for each in layer.traced)
        if not alike or not whole or drawing or own.spec.row_inputs or layer.form.output != 0:
            return None
    names, whole = _names(module, traced, cells, store), reach_everything(first.traced[0].spec)
    return Stack(first.form, first.traced[0].bias, names, whole)


def _names(
    module: nn.Module, traced: Sequence[TracedCell], cells: Sequence[Any], store: CellStore
) -> tuple[str, ...] | None:
    """The flat names of the weights; None if they are not the module's tensors, each once."""
    by_id: dict[int, str] = {}
    count = 0
    for own in store.names:
        for name in own.values():
            tensor = getattr(module, name)
            count += 1
            if isinstance(tensor, nn.Parameter):
                by_id[id(tensor)] = name
    weights = [
        weight for each, cell in zip(traced, cells, strict=True) for weight in each.weights(cell)
    ]
    found = [by_id.get(id(weight)) for weight in weights]
    names = tuple([name for name in found if name is not None])
    # A fast path sees these alone; two names of one tensor may come apart.
    return names if len(found) == len(set(names)) == count else None


@lru_cache(maxsize=1024)
def stack_spec(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    cell: CellSpec,
    bias: bool,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
) -> RNNSpec:
    """A cached `RNNSpec`."""
    return RNNSpec(
        *(input_size, hidden_size, num_layers, cell, bias),
        *(batch_first, dropout, bidirectional),
    )


def initial(form: NormalForm, hx: States, weights: Sequence[Tensor]) -> States:
    """The states that a normal form starts from, see `LayerPlan.initial`."""
    program = form.initial
    if program is None:
        return hx
    parameters = form.cell.parameters
    given = list(hx)
    if parameters and program.used & set(parameters):
        count = len(weights) // hx[0].shape[0]
        # Behind them a quantized layer has the scales and sums of its two matrices.
        behind = 4 if weights[0].dtype is torch.int8 else 0
        for index in range(count - behind - len(parameters), count - behind):
            given.append(torch.stack(list(weights[index::count])).unsqueeze(1))
    else:
        given += [hx[0]] * len(parameters)  # unread
    shape = hx[0].shape
    states = evaluate_tensors(program, given)
    return tuple([state.expand(shape) for state in states if state is not None])
