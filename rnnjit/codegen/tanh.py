"""tanh to the last bits, for any way of writing vectors: the method and its constants.

    tanh(x) = sign(x) e / (e + 2)   with   e = exp(2|x|) - 1, or
    tanh(x) = sign(x) (1 - 2 / (e + 2))   where e > 2,

and exp(y) - 1 by reduction to |r| <= ln(2)/2, y = n ln(2) + r, and the Taylor polynomial of
exp(r) - 1 (Muller, "Elementary Functions", 3rd ed., sections 5 and 11). The error is below 2.5
units in the last place, and below 1 where tanh is above 1/2: there gradients have a factor
1 - tanh^2, which grows such errors by tanh / (1 - tanh^2). NaN has to stay NaN: every clamp is to
be a select that keeps the unordered operand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TanhConstants:
    """What tanh needs for one element width.

    Attributes:
        degree: of the polynomial for exp(r) - 1.
        saturation: beyond it, tanh rounds to 1.
        mantissa_bits: of the format, without the implicit one.
        bias: of the exponent.
        ln2_high: ln(2) with so few bits that multiples by small integers are exact.
    """

    degree: int
    saturation: float
    mantissa_bits: int
    bias: int
    ln2_high: float

    @property
    def ln2_low(self) -> float:
        """ln(2) - ln2_high, to 30 further digits."""
        return (math.log(2.0) - self.ln2_high) + 2.3190468138462996e-17

    @property
    def round_shift(self) -> float:
        """Adding this puts the nearest integer into the low bits of the mantissa."""
        return 1.5 * 2.0**self.mantissa_bits


#: By the width of an element in bits.
TANH = {
    32: TanhConstants(7, 10.0, 23, 127, 0.693145751953125),
    64: TanhConstants(13, 20.0, 52, 1023, 6.93147180369123816490e-01),
}
