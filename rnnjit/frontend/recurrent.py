"""`rnnjit.Recurrent`: a stack of layers of a cell that the user wrote."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.cells import Cell
from rnnjit.frontend import resets
from rnnjit.frontend.arguments import (
    AllStates,
    Prepared,
    Result,
    initial_states,
    prepare,
    restore,
    restore_states,
)
from rnnjit.frontend.cell_loop import Resets, run_loop
from rnnjit.frontend.cell_store import CellStore, check_alike, held_by, register
from rnnjit.ir import CellSpec
from rnnjit.spec import RNNSpec


class Recurrent(nn.Module):
    """A stack of recurrent layers of one cell, with the conventions of torch.nn.LSTM.

    It runs the cell's `forward` step by step, in Python. `rnnjit.compile` makes a module of it that
    computes the same by compiled code.

    It owns the parameters and buffers of the cells of all layers and directions, under flat names
    such as `weight_ih_l0` and `alpha_l1_reverse`: the name in the cell, with `_` for each dot, then
    layer and direction. So the `state_dict` of an nn.LSTM fits the same cell, written again.

    Args:
        cell: the cell of the first layer's first direction, whose parameters become this module's.
            Those of the others are constructed with the same arguments, except that the input
            of later layers has D*H features.
        num_layers: L, stacked layers.
        dropout: probability of the dropout between layers in training mode.
        bidirectional: whether every layer also runs backwards in time, with a cell of its own.
        batch_first: whether dense input and output are `[B, T, ...]` rather than `[T, B, ...]`.

    Attributes:
        input_size: I, features of the input.
        hidden_size: H, features of each state.
        num_layers: as given.
        dropout: as given.
        bidirectional: as given.
        batch_first: as given.

    Raises:
        TypeError: `cell` is no `rnnjit.Cell`, or an argument has a wrong type; or there are further
            cells to construct, and the constructor takes no `input_size`.
        ValueError: `num_layers` or `dropout` is out of range; the cell was changed after its
            construction, and there are further cells to construct; or two of its tensors would
            have one flat name.

    Example:
        >>> import torch
        >>> class Elman(Cell):
        ...     def forward(self, x, h):
        ...         return torch.tanh(self.ih(x) + self.hh(h))
        >>> y, h_n = Recurrent(Elman(3, 5), bidirectional=True)(torch.zeros(4, 2, 3))
        >>> y.shape, h_n.shape
        (torch.Size([4, 2, 10]), torch.Size([2, 2, 5]))
    """

    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool

    def __init__(
        self,
        cell: Cell,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(cell, num_layers, dropout, bidirectional, batch_first)
        self.input_size, self.hidden_size = cell.input_size, cell.hidden_size
        self.num_layers, self.dropout = num_layers, float(dropout)
        self.bidirectional, self.batch_first = bidirectional, batch_first
        self._store = self._own(cell)
        self._cell_form = cell.gates, tuple(cell.states), type(cell).__name__

    def _own(self, cell: Cell) -> CellStore:
        """Construct the other cells, and register the tensors of all."""
        directions = 2 if self.bidirectional else 1
        cells: list[Any] = [cell]
        for index in range(1, self.num_layers * directions):
            layer, direction = divmod(index, directions)
            features = directions * cell.hidden_size if layer else cell.input_size
            made = _like(cell, features)
            check_alike(cell, made, f"layer {layer}, direction {direction}")
            cells.append(made)
        store = CellStore(cells, directions)
        for each, names in zip(cells, store.names, strict=True):
            register(self, each, names)
        return store

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def cells(self) -> tuple[Any, ...]:
        """The cells of each layer and direction, in the order of nn.RNN's weights.

        They hold no tensors, which are this module's. What is assigned to their other attributes,
        such as the scale of a noise, counts from the next call on.
        """
        return self._store.cells

    def reset_parameters(self) -> None:
        """Draw new values for all parameters, as the cells do on construction."""
        for cell in self._store.bind(self):
            for module in cell.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.RNN's own name
        hx: Any = None,
        reset: Tensor | None = None,
        reset_to: Any = None,
        return_states: bool = False,
    ) -> Any:
        """Run the layers.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched; zeros if None. A tuple of
                them if the cell has several states.
            reset: boolean, of the shape of a dense `input` without its last dimension; True zeroes
                all states before that step. The backward direction starts anew at the step before.
            reset_to: where `reset` is set, the states that take the place of those before, instead
                of zeros; a tensor, or a tuple of one for each state. Each is `[L, T, B, D*H]`
                (`[L, B, T, D*H]` if batch_first, `[L, T, D*H]` unbatched), or `[L, D*H]` for the
                same at every reset; L may be left out if it is 1.
            return_states: whether to return every state of every step, too.

        Returns:
            The outputs of the last layer at every step (`[T, B, D*H]`, or in the input's form) and
            the last state of every layer and direction, in the form of `hx`. With `return_states`
            also, for each layer, a tuple of its states after every step, each in the form of the
            outputs; they are before dropout, and share no memory with other results.

        Raises:
            AttributeError: `input` or `hx` is not a tensor.
            ValueError: `input` has a wrong rank or dtype, or `reset` or `reset_to` a wrong shape.
            RuntimeError: any other wrong shape, dtype or device.
            IndexError: a PackedSequence without time steps.
            TypeError: `hx` of several states is neither a tuple nor a list of tensors; `reset` is
                not a boolean Tensor, or is given with packed input; `reset_to` is not what it must
                be, or is given without `reset`; or the cell returned something other than its
                output and its states.
        """
        cells = self._store.bind(self)
        return self._run_cells(cells, input, hx, reset, reset_to, return_states)

    def _run_cells(
        self,
        cells: Sequence[Any],
        x: Any,
        hx: Any,
        reset: Any,
        reset_to: Any,
        return_states: bool,
    ) -> Any:
        """`forward` with cells that have their tensors, or what stands for them."""
        spec = self._outer_spec()
        prepared = prepare(spec, self._first_weight(), x, hx)
        states = initial_states(spec, prepared)
        cuts = self._checked_resets(spec, x, reset, reset_to)
        x = prepared.x.reshape(prepared.rows.N, spec.input_size)
        found = run_loop(
            *(cells, spec, prepared.rows, x, states, self.training, cuts), every=return_states
        )
        return restored(spec, prepared, found.y, found.h_n, found.states if return_states else None)

    def _outer_spec(self) -> RNNSpec:
        """The configuration as callers see it; of the cell it has the names of the states alone."""
        gates, states, name = self._cell_form
        return outer_spec(
            *(self.input_size, self.hidden_size, self.num_layers, gates, states, name),
            *(self.batch_first, self.dropout, self.bidirectional),
        )

    def _first_weight(self) -> Tensor:
        """A floating-point tensor that says the dtype and device of a call."""
        for name in self._store.names[0].values():
            tensor = getattr(self, name)
            if tensor.is_floating_point():
                found: Tensor = tensor
                return found
        raise RuntimeError("the cell has no floating-point parameter")

    def _tensors(self) -> list[Tensor]:
        """All parameters and buffers that calls read."""
        names = (name for each in self._store.names for name in each.values())
        return [getattr(self, name) for name in names]

    def _checked_resets(self, spec: RNNSpec, x: Any, reset: Any, reset_to: Any) -> Resets | None:
        if reset is None:
            if reset_to is not None:
                raise TypeError(
                    "reset_to needs reset: it says from which states a sequence starts anew where "
                    "the mask is set; the states that all start from are hx"
                )
            return None
        resets.check(x, reset)
        starts = resets.starting_states(spec, x, reset_to)
        return Resets(resets.time_major(spec, reset), starts)

    def extra_repr(self) -> str:
        """The cell, and the arguments that differ from their defaults."""
        cell: Any = self.cells[0]
        parts = [f"{type(cell).__name__}({cell.extra_repr()})"]
        for name, default in (
            *(("num_layers", 1), ("dropout", 0.0)),
            *(("bidirectional", False), ("batch_first", False)),
        ):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)


def restored(
    spec: RNNSpec,
    prepared: Prepared,
    y: Tensor,
    h_n: States,
    states: tuple[States, ...] | None,
) -> Result | tuple[Any, Any, AllStates]:
    """Results in the form of the input."""
    if states is None:
        return restore(spec, prepared, y, h_n)
    # Copied first, since y may be laid out anew in place.
    copies = restore_states(spec, prepared, states)
    return (*restore(spec, prepared, y, h_n), copies)


@lru_cache(maxsize=1024)
def outer_spec(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    gates: int,
    states: tuple[str, ...],
    name: str,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
) -> RNNSpec:
    """A configuration with a cell that stands for one whose program is not known."""

    def trace(states: Sequence[str]) -> CellSpec:
        return CellSpec.trace(
            lambda zx, zh, *given: (given[0], *given),
            name=name,
            gates=[str(gate) for gate in range(gates)],
            states=states,
        )

    try:
        cell = trace(states)
    except ValueError:  # a name that programs of cells use themselves
        cell = trace([f"state_{number}" for number in range(len(states))])
    return RNNSpec(
        *(input_size, hidden_size, num_layers, cell, True),
        *(batch_first, dropout, bidirectional),
    )


def _like(cell: Cell, input_size: int) -> Cell:
    """A cell constructed with the arguments of another, for another size of input."""
    made = cell.resized(input_size)
    tensors = [each.tensor for each in held_by(cell) if each.tensor is not None]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if floating:
        made.to(floating[0].device, floating[0].dtype)
    made.train(cell.training)
    return made


def _check_arguments(
    cell: Any, num_layers: Any, dropout: Any, bidirectional: Any, batch_first: Any
) -> None:
    """Check the arguments of `Recurrent`, with the exceptions of nn.RNN."""
    if not isinstance(cell, Cell):
        got = f"the class {cell.__name__}" if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell must be an instance of a subclass of rnnjit.Cell, got {got}")
    if "states" not in vars(cell):
        name = type(cell).__name__
        raise TypeError(
            f"cell must be a constructed rnnjit.Cell, got {name} without sizes and states: call "
            f"super().__init__(input_size, hidden_size) in {name}.__init__"
        )
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise TypeError(f"num_layers must be an int, got {type(num_layers).__name__}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if not isinstance(dropout, numbers.Number) or isinstance(dropout, (bool, complex)):
        raise ValueError(f"dropout must be a number between 0 and 1, got {dropout!r}")
    if not 0 <= float(dropout) <= 1:  # type: ignore[arg-type]  # a real number
        raise ValueError(f"dropout must be a number between 0 and 1, got {dropout!r}")
    for name, value in (("bidirectional", bidirectional), ("batch_first", batch_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    if dropout and num_layers == 1:
        warnings.warn(
            f"dropout is between layers: with num_layers=1 it does nothing, got dropout={dropout}",
            stacklevel=3,
        )
