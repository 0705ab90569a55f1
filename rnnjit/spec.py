"""The configuration of layers (`LayerSpec`, `RNNSpec`) and of one call (`Problem`, `Rows`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.ir import RNN_TANH, CellSpec
from rnnjit.runtime.torch_private import transforming


def _rnn_tanh() -> CellSpec:
    """The default cell. As a plain default PyTorch 2.11 could not trace it."""
    return RNN_TANH


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a stack, all its directions: the unit that a backend computes.

    Attributes:
        cell: the computation of one step.
        input_size: I, features of each input row.
        hidden_size: H, features of each gate.
        num_directions: D, 1 or 2; direction 1 runs from the last time step to the first.
        bias: whether the layer has `b_ih` and `b_hh`.
        proj_size: P, features that `w_hr` projects the output to; 0 if there is no projection.
        quantized: whether the matrices are int8, see `weight_shapes`. Such layers have no gradient.

    The rows of a layer hold the input, then for each direction the R row inputs of its cell:
    `[N, I + D*R*H]`. I is 0 for a cell whose whole input is row inputs.

    Example:
        >>> from rnnjit.ir import LSTM
        >>> LayerSpec(LSTM, 8, 16, 1, True, proj_size=4).state_sizes
        (4, 16)
    """

    cell: CellSpec
    input_size: int
    hidden_size: int
    num_directions: int
    bias: bool
    proj_size: int = 0
    quantized: bool = False

    def __post_init__(self) -> None:
        # Computed once, since every call uses both.
        output, parameters = self.proj_size or self.hidden_size, len(self.cell.parameters)
        sizes = (output, *[self.hidden_size] * (len(self.cell.states) - 1))
        matrices = 3 if self.proj_size else 2
        count = matrices * (3 if self.quantized else 1) + (2 if self.bias else 0) + parameters
        object.__setattr__(self, "_state_sizes", sizes)
        object.__setattr__(self, "_weights_per_direction", count)

    def __hash__(self) -> int:
        # Cached, since every call looks up its plan by the layer.
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            sizes = (self.input_size, self.hidden_size, self.num_directions, self.proj_size)
            found = hash((self.cell, self.bias, self.quantized, sizes))
            object.__setattr__(self, "_hash", found)
        return found

    def __reduce__(self) -> tuple[type[LayerSpec], tuple[object, ...]]:
        # Leaves out the cached hash, which differs between processes.
        return LayerSpec, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def output_size(self) -> int:
        """P or H: features of a direction's output and of its first state."""
        return self.proj_size or self.hidden_size

    @property
    def features(self) -> int:
        """I + D*R*H: the columns of x."""
        inputs = len(self.cell.row_inputs) * self.hidden_size
        return self.input_size + self.num_directions * inputs

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The features of each state: the first is the (projected) output, the others H wide."""
        sizes: tuple[int, ...] = self.__dict__["_state_sizes"]
        return sizes

    @property
    def weights_per_direction(self) -> int:
        """How many weight tensors a direction has, see `weight_shapes`."""
        count: int = self.__dict__["_weights_per_direction"]
        return count

    @property
    def weight_shapes(self) -> tuple[torch.Size, ...]:
        """The shape of each weight of a direction.

        In this order: w_ih `[G*H, I]`, w_hh `[G*H, P or H]`, or `[G*H, 0]` if the cell has no
        recurrent product, b_ih and b_hh `[G*H]` if there are biases, w_hr `[P, H]` if there is a
        projection, then the cell's parameters, each `[H]`.

        If the layer is quantized, the matrices are int8, and each has the scales of its rows,
        float32 `[rows]`, and the sums of its rows, int32 `[rows]`. These follow: all scales in the
        order of the matrices, then all sums. A matrix stands for `scale[:, None] * w`.
        """
        H, columns = self.hidden_size, len(self.cell.gates) * self.hidden_size
        operand_size = self.output_size if self.cell.has_product else 0
        shapes = [(columns, self.input_size), (columns, operand_size)]
        biases = [(columns,), (columns,)] if self.bias else []
        projection = [(self.proj_size, H)] if self.proj_size else []
        parameters = [(H,)] * len(self.cell.parameters)
        rows = [(size[0],) for size in (*shapes, *projection)] if self.quantized else []
        found = (*shapes, *biases, *projection, *parameters, *rows, *rows)
        return tuple(torch.Size(size) for size in found)

    @property
    def weight_dtypes(self) -> tuple[torch.dtype | None, ...]:
        """The dtype of each weight of a direction; None for that of x, which all others have."""
        if not self.quantized:
            return (None,) * self.weights_per_direction
        projection = [torch.int8] if self.proj_size else []
        biases = [torch.float32] * (2 if self.bias else 0)
        matrices, parameters = 2 + len(projection), len(self.cell.parameters)
        others = [torch.float32] * (parameters + matrices)
        return (torch.int8, torch.int8, *biases, *projection, *others, *[torch.int32] * matrices)


@dataclass(frozen=True)
class RNNSpec:
    """The configuration of a stack of recurrent layers, with the names of `nn.RNN`'s arguments.

    Attributes:
        input_size: I, features of the input.
        hidden_size: H, features of each gate.
        num_layers: L, stacked layers.
        cell: the computation of one step, the same in every layer.
        bias: whether every layer has `b_ih` and `b_hh`.
        batch_first: whether dense input and output are `[B, T, ...]` rather than `[T, B, ...]`.
        dropout: probability of the dropout between layers in training mode.
        bidirectional: whether every layer also runs backwards in time.
        proj_size: P, as in `nn.LSTM`; 0 for none.
        quantized: whether the matrices of every layer are int8, see `LayerSpec`.

    Example:
        >>> RNNSpec(input_size=8, hidden_size=16, bidirectional=True).layer(0).num_directions
        2
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    cell: CellSpec = field(default_factory=_rnn_tanh)
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    quantized: bool = False

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def __post_init__(self) -> None:
        # Computed once, since every call of the module uses all of it.
        directions = self.num_directions
        below = directions * (self.proj_size or self.hidden_size)
        layers = tuple(
            LayerSpec(
                self.cell,
                below if index else self.input_size,
                self.hidden_size,
                directions,
                self.bias,
                self.proj_size,
                self.quantized,
            )
            for index in range(self.num_layers)
        )
        shapes: list[torch.Size] = []
        for layer in layers:
            shapes += layer.weight_shapes * directions
        object.__setattr__(self, "_layers", layers)
        object.__setattr__(self, "_weight_shapes", tuple(shapes))
        dtypes = [dtype for layer in layers for dtype in layer.weight_dtypes * directions]
        object.__setattr__(self, "_weight_dtypes", tuple(dtypes))
        typed = dtypes.index(torch.float32) if self.quantized else 0
        object.__setattr__(self, "_typed_weight", typed)

    def in_int8(self) -> RNNSpec:
        """The same stack with int8 matrices."""
        return _in_int8(self)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The specs of all layers, first to last."""
        layers: tuple[LayerSpec, ...] = self.__dict__["_layers"]
        return layers

    @property
    def weight_shapes(self) -> tuple[torch.Size, ...]:
        """The shape of every weight, in nn.RNN's flat order: per layer, per direction."""
        shapes: tuple[torch.Size, ...] = self.__dict__["_weight_shapes"]
        return shapes

    @property
    def weight_dtypes(self) -> tuple[torch.dtype | None, ...]:
        """The dtype of every weight, as in `LayerSpec.weight_dtypes`."""
        dtypes: tuple[torch.dtype | None, ...] = self.__dict__["_weight_dtypes"]
        return dtypes

    @property
    def typed_weight(self) -> int:
        """The index of the first weight whose dtype and device are those of x and the states."""
        index: int = self.__dict__["_typed_weight"]
        return index

    def layer(self, index: int) -> LayerSpec:
        """The spec of layer `index`; layers after the first take the outputs of the layer below."""
        return self.layers[index]

    def state_shapes(self, batch: int) -> tuple[tuple[int, int, int], ...]:
        """The shape `[L*D, B, features]` of each state of the whole stack."""
        count, output = self.num_layers * self.num_directions, self.proj_size or self.hidden_size
        others = [(count, batch, self.hidden_size)] * (len(self.cell.states) - 1)
        return ((count, batch, output), *others)


@lru_cache(maxsize=256)
def _in_int8(spec: RNNSpec) -> RNNSpec:
    return replace(spec, quantized=True)


class Problem(NamedTuple):
    """The properties of one call by which a backend accepts or declines it.

    Attributes:
        dtype: dtype of the input and every weight.
        device: device type, such as "cpu" or "cuda".
        T: time steps (the longest sequence's, if packed).
        B: batch size (the largest, if packed).
        N: rows, the sum of all sequence lengths; T*B when dense.
        packed: whether the rows are those of a PackedSequence.
        needs_grad: whether a backward pass may follow.
        device_index: index of the device; -1 for the CPU, and for the current device.
        cell: whether this is a call of a Cell, for which torch has one operator, and T is 1.
    """

    dtype: torch.dtype
    device: str
    T: int
    B: int
    N: int
    packed: bool
    needs_grad: bool
    device_index: int = -1
    cell: bool = False


class Rows(NamedTuple):
    """How N rows are laid over time: time-major, all rows of step 0, then all of step 1, ...

    Step t holds `batch_sizes[t]` rows, never more than step t-1, and row b of every step
    belongs to sequence b. A dense batch has B rows in every step and no `batch_sizes` tensor.

    Attributes:
        T: number of steps.
        B: rows of the first step.
        N: rows of all steps.
        batch_sizes: int64 CPU tensor `[T]`, or None for a dense batch.
    """

    T: int
    B: int
    N: int
    batch_sizes: Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """The number of rows in each step, as plain integers."""
        if self.batch_sizes is None:
            return [self.B] * self.T
        return integers(self.batch_sizes)


def integers(tensor: Tensor) -> list[int]:
    """The elements of a 1-D integer tensor as Python ints."""
    if transforming():
        # In PyTorch 2.9, tolist() fails inside a torch.func transform.
        return [int(number) for number in tensor]
    numbers: list[int] = tensor.tolist()
    return numbers
