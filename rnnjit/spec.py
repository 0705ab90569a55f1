"""What a layer is (`RNNSpec`, `LayerSpec`) and what one call to it is (`Problem`, `Rows`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a stack, all its directions: the unit that a backend computes.

    Attributes:
        cell: name of the pointwise part, a key of `rnnjit.cells.CELLS`.
        input_size: I, features of each input row.
        hidden_size: H, features of each direction's state.
        num_directions: D, 1 or 2; direction 1 runs from the last time step to the first.
        bias: whether the layer has `b_ih` and `b_hh`.
    """

    cell: str
    input_size: int
    hidden_size: int
    num_directions: int
    bias: bool

    @property
    def weight_shapes(self) -> tuple[torch.Size, ...]:
        """The shape of each weight of a direction, in nn.RNN's order."""
        H = self.hidden_size
        matrices = (torch.Size((H, self.input_size)), torch.Size((H, H)))
        return (*matrices, torch.Size((H,)), torch.Size((H,))) if self.bias else matrices

    @property
    def weights_per_direction(self) -> int:
        """How many weight tensors a direction has: (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh)."""
        return 4 if self.bias else 2


@dataclass(frozen=True)
class RNNSpec:
    """The configuration of an `nn.RNN`, in its own vocabulary.

    Attributes:
        input_size: I, features of the input.
        hidden_size: H, features of each direction's state.
        num_layers: L, stacked layers.
        nonlinearity: "tanh" or "relu".
        bias: whether every layer has `b_ih` and `b_hh`.
        batch_first: whether dense input and output are `[B, T, ...]` rather than `[T, B, ...]`.
        dropout: probability of the dropout between layers in training mode.
        bidirectional: whether every layer also runs backwards in time.

    Example:
        >>> RNNSpec(input_size=8, hidden_size=16, bidirectional=True).layer(0).num_directions
        2
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def __post_init__(self) -> None:
        # Worked out once and not on each use: a call to the module asks for both.
        directions, hidden = self.num_directions, self.hidden_size
        layers = tuple(
            LayerSpec(
                self.nonlinearity,
                directions * hidden if index else self.input_size,
                hidden,
                directions,
                self.bias,
            )
            for index in range(self.num_layers)
        )
        shapes: list[torch.Size] = []
        for layer in layers:
            shapes += layer.weight_shapes * directions
        object.__setattr__(self, "_layers", layers)
        object.__setattr__(self, "_weight_shapes", tuple(shapes))

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

    def layer(self, index: int) -> LayerSpec:
        """The spec of layer `index`; layers after the first read D*H features."""
        return self.layers[index]


class Problem(NamedTuple):
    """What a backend may look at to accept or decline one call: no tensors, only facts.

    Attributes:
        dtype: of the input and every weight.
        device: device type, such as "cpu" or "cuda".
        T: time steps (the longest sequence's, if packed).
        B: batch size (the largest, if packed).
        N: rows, the sum of all sequence lengths; T*B when dense.
        packed: whether the rows are those of a PackedSequence.
        needs_grad: whether a backward pass may follow.
        device_index: which device of its type; -1 for the CPU, and for the current one.
    """

    dtype: torch.dtype
    device: str
    T: int
    B: int
    N: int
    packed: bool
    needs_grad: bool
    device_index: int = -1


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
    """The numbers in a 1-D tensor of integers."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        # PyTorch 2.9 has no memory to read a list from inside a torch.func transform.
        return [int(number) for number in tensor]
    numbers: list[int] = tensor.tolist()
    return numbers
