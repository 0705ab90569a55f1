"""What floating-point operations may give in any order of summation, as ranges.

The arithmetic is that of intervals with outward rounding, in float64, plus two facts for each
number: whether it may be NaN, and whether it may be a number at all. A sum of terms may be taken in
any order, in parts, with or without fused multiply-adds, and may flush subnormals to zero. So a sum
may overflow if the terms of one sign alone do, and infinities of both signs may meet in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnjit.testing.tolerances import largest

_INF = float("inf")


@dataclass(frozen=True)
class Range:
    """Where the elements of a tensor may lie.

    Attributes:
        lo: float64, the least that an element may be if it is a number; infinities included.
        hi: the greatest.
        nan: whether it may be NaN.
        num: whether it may be a number; lo and hi mean nothing where it may not.
    """

    lo: Tensor
    hi: Tensor
    nan: Tensor
    num: Tensor

    @classmethod
    def exactly(cls, tensor: Tensor) -> Range:
        values = tensor.detach().double()
        nan = values.isnan()
        values = values.where(~nan, 0)
        return cls(values, values.clone(), nan, ~nan)

    @classmethod
    def zeros(cls, *shape: int) -> Range:
        return cls.exactly(torch.zeros(shape))

    def _map(self, change) -> Range:
        return Range(change(self.lo), change(self.hi), change(self.nan), change(self.num))

    def __getitem__(self, index) -> Range:
        return self._map(lambda tensor: tensor[index])

    def __setitem__(self, index, value: Range) -> None:
        for name in ("lo", "hi", "nan", "num"):
            getattr(self, name)[index] = getattr(value, name)

    def negated(self) -> Range:
        return Range(-self.hi, -self.lo, self.nan, self.num)

    def decided(self) -> Tensor:
        """Where an element can be but one of NaN, +Inf, -Inf and finite."""
        infinite = (self.lo == self.hi) & self.lo.isinf()
        finite = self.lo.isfinite() & self.hi.isfinite()
        return (self.nan & ~self.num) | (self.num & ~self.nan & (infinite | finite))

    def holds(self, values: Tensor) -> Tensor:
        """Where the elements of a tensor are possible."""
        values = values.detach().double()
        inside = self.num & (values >= self.lo) & (values <= self.hi)
        return torch.where(values.isnan(), self.nan, inside)


def beside(ranges: list[Range], dim: int) -> Range:
    """Ranges joined along a dimension; sizes of the others expand."""
    if dim < 0:
        dim += ranges[0].lo.dim()

    def join(name: str) -> Tensor:
        parts = [getattr(r, name) for r in ranges]
        sizes = [[p.shape[i] for p in parts] for i in range(parts[0].dim())]
        shape = [max(s) if 0 not in s else 0 for s in sizes]
        return torch.cat(
            [p.expand(*shape[:dim], p.shape[dim], *shape[dim + 1 :]) for p in parts], dim
        )

    return Range(*(join(name) for name in ("lo", "hi", "nan", "num")))


class Arithmetic:
    """Operations on ranges, as they may come out in a dtype.

    Attributes:
        peak: the largest magnitude that anything finite may have had on the way.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        self._eps, self._tiny, self._largest = info.eps, info.tiny, info.max
        self._saturation = 10.0 if dtype == torch.float32 else 20.0
        self.peak = 0.0

    def times(self, a: Range, b: Range) -> Range:
        """Products, not rounded: a sum that they are terms of may be fused with them."""
        corners = [_corner(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
        lo = torch.stack([low for low, _ in corners]).amin(0)
        hi = torch.stack([high for _, high in corners]).amax(0)
        nan = a.nan | b.nan | (_zero(a) & _infinite(b)) | (_infinite(a) & _zero(b))
        never = (_surely_zero(a) & _surely_infinite(b)) | (_surely_infinite(a) & _surely_zero(b))
        return Range(lo, hi, nan, a.num & b.num & ~never)

    def total(self, terms: Range, dim: int = -1) -> Range:
        """The sum of terms along a dimension."""
        lo, hi = terms.lo.where(terms.num, 0), terms.hi.where(terms.num, 0)
        # float64, since whole numbers times a float are float32, where the tiniest are zero.
        count = ((lo != 0) | (hi != 0)).sum(dim).double()
        above, below = hi.clamp(min=0).sum(dim), (-lo).clamp(min=0).sum(dim)
        for side in (above, below):
            self.peak = max(self.peak, largest(side))
        rounding = 4 * (count + 1) * self._eps
        over, under = (side * (1 + rounding) > self._largest for side in (above, below))
        surely_over, surely_under = (lo == _INF).any(dim), (hi == -_INF).any(dim)
        slack = (rounding * (above + below) + count * self._tiny).nan_to_num(_INF, _INF)
        low = (lo.sum(dim) - slack).nan_to_num(-_INF, _INF, -_INF)
        high = (hi.sum(dim) + slack).nan_to_num(_INF, _INF, -_INF)
        # Numbers of one sign add up to no number of the other.
        low = low.where((below > 0) | (low > 0), 0)
        high = high.where((above > 0) | (high < 0), 0)
        low = torch.where(under | (low < -self._largest), -_INF, low)
        high = torch.where(over | (high > self._largest), _INF, high)
        low = torch.where(surely_over | (low > self._largest), _INF, low)
        high = torch.where(surely_under | (high < -self._largest), -_INF, high)
        nan = terms.nan.any(dim) | (over & under)
        num = terms.num.all(dim) & ~(surely_over & surely_under)
        return Range(low, high, nan, num)

    def product(self, a: Range, b: Range) -> Range:
        """Products, each rounded."""
        both = self.times(a, b)
        return self.total(both._map(lambda tensor: tensor.unsqueeze(-1)))

    def activate(self, cell: str, z: Range) -> Range:
        """The pointwise part of a cell."""
        if cell == "relu":
            return Range(z.lo.clamp(min=0), z.hi.clamp(min=0), z.nan, z.num)
        lo, hi = z.lo.tanh(), z.hi.tanh()
        lo, hi = lo - self._tanh_error(lo), hi + self._tanh_error(hi)
        lo, hi = lo.where(z.lo <= 0, lo.clamp(min=0)), hi.where(z.hi >= 0, hi.clamp(max=0))
        lo = torch.where(z.lo >= self._saturation, 1.0, lo.clamp(-1, 1))
        hi = torch.where(z.hi <= -self._saturation, -1.0, hi.clamp(-1, 1))
        return Range(lo, hi, z.nan, z.num)

    def sigmoid(self, z: Range) -> Range:
        """1 / (1 + exp(-z)); where exp overflows it may be zero."""
        lo, hi = z.lo.sigmoid(), z.hi.sigmoid()
        lo = (lo * (1 - 8 * self._eps) - 4 * self._tiny).clamp(min=0)
        hi = (hi * (1 + 8 * self._eps) + 4 * self._tiny).clamp(max=1)
        return Range(lo, hi, z.nan, z.num)

    def _tanh_error(self, value: Tensor) -> Tensor:
        size = value.abs()
        subnormal = (size > 0) & (size < 4 * self._tiny)
        return 8 * self._eps * size + self._tiny * subnormal.double()

    def activation_gradient(self, cell: str, grad: Range, h: Range) -> Range:
        """The gradient of the pre-activation, given that of the state `h`."""
        if cell == "tanh":
            return self.product(grad, self._slope(h))
        through, blocked = h.nan | (h.num & (h.hi > 0)), h.num & (h.lo <= 0)
        lo = torch.where(through, torch.where(blocked, grad.lo.clamp(max=0), grad.lo), 0.0)
        hi = torch.where(through, torch.where(blocked, grad.hi.clamp(min=0), grad.hi), 0.0)
        # The gradient's own numbers count only where it may be one.
        never = through & ~grad.num
        lo, hi = torch.where(never, 0.0, lo), torch.where(never, 0.0, hi)
        return Range(lo, hi, grad.nan & through, blocked | (through & grad.num))

    def _slope(self, h: Range) -> Range:
        """1 - h^2."""
        most = torch.maximum(h.lo.abs(), h.hi.abs())
        least = torch.minimum(h.lo.abs(), h.hi.abs()).where(h.lo.sign() * h.hi.sign() > 0, 0)
        lo = (1 - most.square() - 4 * self._eps).clamp(min=0)
        hi = (1 - least.square() + 4 * self._eps).clamp(max=1)
        lo, hi = torch.where(most == 0, 1.0, lo), torch.where(least == 1, 0.0, hi)
        return Range(lo, hi, h.nan, h.num)


def _corner(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A lower and an upper bound of products; an infinity times zero counts as zero.

    What is too large for float64 is not infinite for all that: added to an infinity of the other
    sign by a fused multiply-add, it leaves that.
    """
    product = (x * y).nan_to_num(0.0, _INF, -_INF)
    finite, most = x.isfinite() & y.isfinite(), torch.finfo(torch.float64).max
    low = product.where(~finite, product.clamp(max=most))
    return low, product.where(~finite, product.clamp(min=-most))


def _zero(r: Range) -> Tensor:
    return r.num & (r.lo <= 0) & (r.hi >= 0)


def _surely_zero(r: Range) -> Tensor:
    return r.num & ~r.nan & (r.lo == 0) & (r.hi == 0)


def _infinite(r: Range) -> Tensor:
    return r.num & (r.lo.isinf() | r.hi.isinf())


def _surely_infinite(r: Range) -> Tensor:
    return r.num & ~r.nan & r.lo.isinf() & (r.lo == r.hi)
