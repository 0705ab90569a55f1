"""Cells as data: the pointwise part of the recurrence, as the kernels compute it.

    forward    h = activation(z)
    backward   dz = grad * activation'(z), the derivative expressed by h = activation(z)

A cell is a pair of plain Python functions of numbers of one type; kernel factories build them into
kernels, and the simulator calls them. Neither uses min or max, which drop NaN on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """The pointwise part of one kernel.

    Attributes:
        activation: `(z) -> h`.
        gradient: `(grad, h) -> dz`, given the gradient of h.
    """

    activation: Callable[[Any], Any]
    gradient: Callable[[Any, Any], Any]


def tanh(real: Any) -> Cell:
    """The cell of the hyperbolic tangent: dz = grad * (1 - h^2)."""
    one = real(1)

    def activation(z: Any) -> Any:
        return real(math.tanh(z))

    def gradient(grad: Any, h: Any) -> Any:
        return grad * (one - h * h)

    return Cell(activation, gradient)


def relu(real: Any) -> Cell:
    """The cell of the larger of z and 0, NaN staying NaN: dz = 0 where h <= 0, else grad."""
    zero = real(0)

    def activation(z: Any) -> Any:
        return zero if z < zero else z

    def gradient(grad: Any, h: Any) -> Any:
        return zero if h <= zero else grad

    return Cell(activation, gradient)


#: What builds each cell, by its name in `rnnjit.cells.CELLS`; `real` is a numba float type.
CELLS: dict[str, Callable[[Any], Cell]] = {"tanh": tanh, "relu": relu}
