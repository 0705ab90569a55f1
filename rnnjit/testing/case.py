"""What the kit asks of a backend: a frozen `Case`, one layer and one call to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from rnnjit.ir import RNN_TANH, CellSpec
from rnnjit.spec import Problem, RNNSpec
from rnnjit.testing.user_cells import known


@dataclass(frozen=True)
class Case:
    """One layer and one call, with everything that follows from them.

    The layer's options are those of nn.RNN, nn.LSTM and nn.GRU; a layer of a user's cell is a
    `rnnjit.Recurrent`. `rnnjit.testing.calls.build` makes the tensors.

    Attributes:
        id: what it is called in test ids; it also seeds the values.
        cell: that of one of torch's layers; not used if there is a `user_cell`.
        user_cell: a key of `rnnjit.testing.user_cells.USER_CELLS`, or None.
        quantized: whether the matrices are int8, by `rnnjit.quantize`: results then never require a
            gradient, and there is no dropout. Not with the layout "expanded".
        proj_size: as in nn.LSTM.
        T: time steps of a dense input.
        B: batch size of a dense input.
        lengths: the sequences' lengths if the input is packed (then `T` and `B` do not count).
        enforce_sorted: as in `pack_padded_sequence`.
        unbatched: whether the input is one sequence `[T, I]`.
        h0: whether initial states are given, all of the cell's.
        training: whether the module is in training mode.
        dtype: of all tensors.
        device: type of the device that all tensors are on.
        layout: how the input, the initial states and the weights lie in memory.
        values: "tiny" and "saturated" scale the input; "nan" and "inf" put some in; "ties" makes
            rows of x and of the initial states whose int8 numbers are in the middle of two.
        loss: what the gradients come from: "all" outputs, or one of them by name, "y", "h_n" or
            "c_n"; "sum" is the sum of all outputs, whose gradients reach the layer as expanded
            tensors, the others weigh each element differently.
        frozen: names of what needs no gradient: "x", initial states ("h0", "c0"), weights;
            "weights" stands for all weights.
        required: whether a backend that computes the cell may not decline it.
        quick: whether it belongs to the quick subset.
        thorough: whether the checks beyond values, gradients and refusal are run on it as well.

    Example:
        >>> Case("packed", lengths=(2, 3), enforce_sorted=False).problem(needs_grad=False).N
        5
    """

    id: str
    input_size: int = 6
    hidden_size: int = 20
    num_layers: int = 1
    cell: CellSpec = RNN_TANH
    user_cell: str | None = None
    quantized: bool = False
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    T: int = 7
    B: int = 5
    lengths: tuple[int, ...] | None = None
    enforce_sorted: bool = True
    unbatched: bool = False
    h0: bool = False
    training: bool = True
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    layout: Literal["contiguous", "transposed", "offset", "strided", "expanded"] = "contiguous"
    values: Literal["normal", "tiny", "saturated", "nan", "inf", "ties"] = "normal"
    loss: Literal["all", "y", "h_n", "c_n", "sum"] = "all"
    frozen: frozenset[str] = frozenset()
    required: bool = True
    quick: bool = False
    thorough: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states, as the layer's user sees them."""
        return self.spec.cell.states

    @property
    def cell_name(self) -> str:
        """What the cell is called in reports."""
        name = self.user_cell or self.cell.name
        return f"{name} int8" if self.quantized else name

    @property
    def spec(self) -> RNNSpec:
        """The layer, as its user calls it."""
        return RNNSpec(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.cell if self.user_cell is None else known(self.user_cell).spec,
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
            self.proj_size,
            self.quantized,
        )

    @property
    def lowered(self) -> RNNSpec:
        """What a backend is asked to compute: the layer, or the first of several of a user's cell.

        A backend gets the layers of such a cell one by one where the cell has row inputs or another
        output than its first state.
        """
        spec = self.spec
        if self.user_cell is None:
            return spec
        _, form, multiplies_x, bias = known(self.user_cell)
        cell = form.cell
        if cell.row_inputs or form.output:
            I = self.input_size if multiplies_x else 0
            return RNNSpec(
                *(I, self.hidden_size, 1, cell, self.bias and bias),
                bidirectional=self.bidirectional,
                quantized=self.quantized,
            )
        return replace(spec, cell=cell)

    @property
    def steps(self) -> int:
        """Time steps: the longest sequence's if packed."""
        return self.T if self.lengths is None else max(self.lengths)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        if self.lengths is not None:
            return len(self.lengths)
        return 1 if self.unbatched else self.B

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the output, or of its `data` if packed."""
        spec = self.spec
        features = spec.num_directions * spec.layer(0).output_size
        if self.lengths is not None:
            return (sum(self.lengths), features)
        if self.unbatched:
            return (self.T, features)
        return (self.B, self.T, features) if self.batch_first else (self.T, self.B, features)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each state, the initial and the last."""
        shapes = self.spec.state_shapes(self.batch)
        return tuple((count, size) for count, _, size in shapes) if self.unbatched else shapes

    def problem(self, *, needs_grad: bool) -> Problem:
        """The facts that a backend accepts or declines the call by.

        Args:
            needs_grad: whether the call is made where torch records it; that of a quantized layer
                never needs a gradient.
        """
        needs_grad = needs_grad and not self.quantized
        rows = sum(self.lengths) if self.lengths is not None else self.steps * self.batch
        packed = self.lengths is not None
        return Problem(self.dtype, self.device, self.steps, self.batch, rows, packed, needs_grad)
