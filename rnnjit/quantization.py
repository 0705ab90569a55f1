"""What layers of int8 matrices compute: int8 products of quantized rows, by torch's operators.

Backends compute the same integers; `rnnjit.reference` and conformance tests compute them by this.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: The largest absolute value of a quantized number; -128 is not used, so that rows are symmetric.
LARGEST = 127
#: A float32 product of int8 numbers is exact up to this many of them: all partial sums are integers
#: below 2^24. A float64 product is exact for any that fit into memory.
_EXACT_IN_FLOAT32 = 2**24 // (128 * LARGEST)


class QuantizedMatrix(NamedTuple):
    """A matrix that stands for `scale[:, None] * values`.

    Attributes:
        values: int8 `[rows, columns]`.
        scale: float32 `[rows]`.
        sums: int32 `[rows]`, the sum of the values of each row.
    """

    values: Tensor
    scale: Tensor
    sums: Tensor


def quantize_matrix(weight: Tensor) -> QuantizedMatrix:
    """Quantize the rows of a matrix, symmetrically: `scale = max |row| / 127`.

    A row of zeros has scale 1. Values are rounded to the nearest, half to even.

    Args:
        weight: floating-point `[rows, columns]`, all values finite.

    Raises:
        ValueError: a value is not finite.
    """
    w = weight.detach().double() if not weight.is_meta else weight.detach()
    if not weight.is_meta and not bool(w.isfinite().all()):
        raise ValueError("a matrix to quantize must have finite values, got NaN or infinities")
    largest = _largest(w)
    scale = (largest / LARGEST).float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    values = (w / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return of_values(values, scale)


def of_values(values: Tensor, scale: Tensor) -> QuantizedMatrix:
    """A matrix of int8 values `[rows, columns]`, with the scales of its rows and its sums."""
    sums = values.sum(1, dtype=torch.int32)
    return QuantizedMatrix(values.contiguous(), scale.float().contiguous(), sums)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows for one product, symmetrically, each by its own largest absolute value.

    With `m = max |row|`, a value is `round(v * (127 / m))`, half to even, and the scale is
    `m / 127`. Of a row whose values are zero, or so small that `127 / m` overflows, both are zero.

    Args:
        x: float32 or float64 `[rows, columns]`.

    Returns:
        int8 `[rows, columns]`, and the scale of each row, of the dtype of x. A row with a NaN or an
        infinity has scale NaN, so that all its products are NaN.
    """
    largest = _largest(x)
    factor = LARGEST / largest
    usable = largest.isfinite() & factor.isfinite()
    factor = torch.where(usable, factor, torch.zeros_like(factor))
    values = torch.where(usable[:, None], x * factor[:, None], torch.zeros_like(x))
    values = values.round().clamp(-LARGEST, LARGEST).to(torch.int8)
    scale = torch.where(usable, largest / LARGEST, torch.zeros_like(largest))
    scale = torch.where(largest.isfinite(), scale, torch.full_like(scale, torch.nan))
    return values, scale


class Product:
    """The products of rows with one matrix.

    The sums of products of integers are exact. All else is computed in the dtype of the rows:
    `bias + sum * (scale of the row of x * scale of the row of the matrix)`.

    Args:
        values: int8 `[rows, columns]`.
        scale: float32 `[rows]`.
        bias: `[rows]`, or None.
    """

    def __init__(self, values: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        exact = torch.float32 if values.shape[1] <= _EXACT_IN_FLOAT32 else torch.float64
        self._columns, self._scale, self._bias = values.to(exact).t(), scale, bias

    def __call__(self, x: Tensor) -> Tensor:
        """The products of rows `[N, columns]`: `[N, rows]`."""
        values, scale = quantize_rows(x)
        sums = (values.to(self._columns.dtype) @ self._columns).to(x.dtype)
        found = sums * (scale[:, None] * self._scale.to(x.dtype))
        return found if self._bias is None else self._bias + found


def product(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows, which are quantized for it, with an int8 matrix; see `Product`.

    Args:
        x: float32 or float64 `[N, columns]`.
        values: int8 `[rows, columns]`.
        scale: float32 `[rows]`, of the matrix.
        bias: `[rows]`, or None.

    Returns:
        `[N, rows]`, of the dtype of x.

    Example:
        >>> q = quantize_matrix(torch.tensor([[1.0, -0.5]]))
        >>> product(torch.tensor([[2.0, 0.0]]), q.values, q.scale)
        tensor([[2.]])
    """
    return Product(values, scale, bias)(x)


def _largest(rows: Tensor) -> Tensor:
    """The largest absolute value of each row; NaN where there is one."""
    return rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
