"""`Cell`: the class that users derive their recurrent cells from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CellT = TypeVar("CellT", bound="Cell")


class Cell(nn.Module):
    """One step of a recurrent layer, written in PyTorch.

    A subclass defines `forward(x, *states)`, with x `[B, I]` and each state `[B, H]`. It returns
    the output `[B, H]` and then every new state `[B, H]`; or just as many results as there are
    states, if the output is the first of them. Used alone, a cell is one step, as `nn.LSTMCell` is.

        >>> class Minimal(Cell):
        ...     def forward(self, x, h):
        ...         f = torch.sigmoid(self.ih(x) + self.hh(h))
        ...         return f * h + (1 - f) * torch.tanh(x @ self.w.T)
        ...
        ...     def __init__(self, input_size, hidden_size):
        ...         super().__init__(input_size, hidden_size)
        ...         self.w = nn.Parameter(torch.zeros(hidden_size, input_size))
        >>> Minimal(2, 3)(torch.zeros(4, 2), torch.zeros(4, 3)).shape
        torch.Size([4, 3])

    Attributes:
        input_size: I.
        hidden_size: H.
        gates: G, the number of blocks of H columns that `ih` and `hh` compute.
        states: the names of the states.
        bias: whether `ih` and `hh` have biases.
        weight_ih, weight_hh: `[G*H, I]` and `[G*H, H]`, initialised as torch's.
        bias_ih, bias_hh: `[G*H]`, or None.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter | None
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None
    _construction: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls: type[CellT], *args: Any, **kwargs: Any) -> CellT:
        """Keep the arguments, with which `resized` constructs the cells of other layers."""
        self = super().__new__(cls)
        object.__setattr__(self, "_construction", (args, kwargs))
        return self

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        gates: int = 1,
        states: Sequence[str] = ("h",),
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent: bool = True,
    ) -> None:
        """Register the weights.

        Args:
            input_size: I, features of x.
            hidden_size: H, features of every state and of the output.
            gates: G, how many blocks of H columns `ih` and `hh` compute.
            states: a name for each state, in the order of the arguments of `forward`.
            bias: whether there are `bias_ih` and `bias_hh`.
            device: where the weights are; None for torch's default.
            dtype: the weights' dtype; None for torch's default.
            recurrent: whether there is `hh`; a cell without it has no `weight_hh` and `bias_hh`.

        Raises:
            TypeError, ValueError: a size is no positive integer, or a state's name no identifier.
        """
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            _check_size(name, size)
        _check_size("gates", gates)
        self.input_size, self.hidden_size, self.gates = input_size, hidden_size, gates
        self.states, self.bias = _names(states), bias
        columns = gates * hidden_size
        shapes: dict[str, tuple[int, ...] | None] = {
            "weight_ih": (columns, input_size),
            "weight_hh": (columns, hidden_size) if recurrent else None,
            "bias_ih": (columns,) if bias else None,
            "bias_hh": (columns,) if bias and recurrent else None,
        }
        for name, shape in shapes.items():
            # Torch's defaults of device and dtype decide where the user named none, as in nn.RNN.
            value = None if shape is None else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights and biases from U(-k, k) with k = 1 / sqrt(H), as torch does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            parameter = getattr(self, name)
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def ih(self, x: Tensor) -> Tensor:
        """W_ih x + b_ih: from `[B, I]` to `[B, G*H]`."""
        return F.linear(x, self.weight_ih, self.bias_ih)

    def hh(self, h: Tensor) -> Tensor:
        """W_hh h + b_hh: from `[B, H]` to `[B, G*H]`.

        Raises:
            TypeError: the cell was constructed with `recurrent=False`.
        """
        if self.weight_hh is None:
            raise TypeError(f"{type(self).__name__} has no hh: construct it with recurrent=True")
        return F.linear(h, self.weight_hh, self.bias_hh)

    if TYPE_CHECKING:
        # As nn.Module declares it, so that a subclass may name and type its own states.
        forward: Callable[..., Any]
    else:

        def forward(self, x: Tensor, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
            """One step; a subclass defines it."""
            raise NotImplementedError(
                f"{type(self).__name__} defines no forward(x, {', '.join(self.states)})"
            )

    def resized(self: CellT, input_size: int) -> CellT:
        """A new cell, constructed with the same arguments but for the input size.

        Raises:
            TypeError: the constructor takes no `input_size`.
        """
        args, kwargs = self._construction
        kind = type(self)
        # Not that of the class, which would be that of `__new__` here.
        signature = inspect.signature(kind.__init__)
        bound = signature.bind(self, *args, **kwargs)
        if "input_size" in signature.parameters:
            bound.arguments["input_size"] = input_size
            return kind(*bound.args[1:], **bound.kwargs)
        if "input_size" in kwargs:
            return kind(*args, **{**kwargs, "input_size": input_size})
        raise TypeError(
            f"{kind.__name__}: expected a constructor with an argument input_size, got "
            f"{kind.__name__}{signature}; cells of further layers are constructed with it"
        )

    def extra_repr(self) -> str:
        """The sizes, as torch's modules show theirs."""
        states = ", ".join(self.states)
        return f"{self.input_size}, {self.hidden_size}, gates={self.gates}, states=({states})"


def _check_size(name: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name}: expected an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}")


def _names(states: Sequence[str]) -> tuple[str, ...]:
    if isinstance(states, str):
        raise TypeError(f"states: expected a tuple of names, got the string {states!r}")
    names = tuple(states)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"states: expected at least one name, all different, got {names}")
    for name in names:
        if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
            raise ValueError(f"states: expected names that are ASCII identifiers, got {name!r}")
    return names
