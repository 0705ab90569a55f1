"""The method and the constants for exp, log and what follows from them, to a few units.

exp(y) is reduced to |r| <= ln(2)/2 by y = n ln(2) + r, so that exp(y) = 2^n (1 + p), where p is the
Taylor polynomial of exp(r) - 1 (Muller, "Elementary Functions", 3rd ed., sections 5 and 11):

    exp(y) = 2^n (1 + p)

    tanh(x) = sign(x) e / (e + 1)         with 2 e = exp(2|x|) - 1 = 2^n p + (2^n - 1), or
    tanh(x) = sign(x) (1 - 1 / (e + 1))   where e > 1.

The error of exp is below 1.1 units in the last place. That of tanh is below 2.5 units, below 1.5
where tanh is above 1/2, and below 1.1 where it is above 3/4: there gradients have a factor
1 - tanh^2, which magnifies the error of tanh by about tanh / (1 - tanh^2).

log(x) is reduced to x = 2^n (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2). With s = f / (2 + f),
log(1 + f) is 2 artanh(s), whose Taylor series is summed so that f itself, which is exact, is the
largest term (sections 5 and 11 of the same book):

    log(x) = n ln(2) + f - s (f - t)      with t = 2/3 s^2 + 2/5 s^4 + 2/7 s^6 + ...

    log1p(x) = log(u) + c / u             with u = 1 + x rounded, and c what the rounding took
    expm1(x) = 2 (2^(n-1) p + (2^(n-1) - 1/2))
    softplus(x) = log1p(exp(x))

The error of log is below 1 unit in the last place, those of log1p and expm1 are below 2 units.
`rnnjit.codegen.pointwise` has the code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Constants:
    """The constants of the elementary functions for one element width.

    Attributes:
        degree: degree of the polynomial for exp(r) - 1.
        terms: number of terms of t, for log.
        tanh_saturation: tanh rounds to 1 from this argument on.
        exp_low, exp_high: exp rounds to 0 at the first, and overflows at the second.
        mantissa_bits: bits of the mantissa, without the implicit one.
        bias: bias of the exponent.
        ln2_high: ln(2) with so few bits that n * ln2_high is exact for every n that occurs.
    """

    degree: int
    terms: int
    tanh_saturation: float
    exp_low: float
    exp_high: float
    mantissa_bits: int
    bias: int
    ln2_high: float

    @property
    def ln2_low(self) -> float:
        """ln(2) - ln2_high, with a correction for the rounding of `math.log(2.0)`."""
        return (math.log(2.0) - self.ln2_high) + 2.3190468138462996e-17

    @property
    def round_shift(self) -> float:
        """Adding this puts the nearest integer into the low bits of the mantissa."""
        return 1.5 * 2.0**self.mantissa_bits


#: By the width of an element in bits.
CONSTANTS: Mapping[int, Constants] = MappingProxyType(
    {
        32: Constants(7, 5, 10.0, -104.0, 89.0, 23, 127, 0.693145751953125),
        64: Constants(13, 10, 20.0, -746.0, 710.0, 52, 1023, 6.93147180369123816490e-01),
    }
)
