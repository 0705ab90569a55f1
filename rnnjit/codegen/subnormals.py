"""Whether backward kernels flush subnormal numbers to zero.

A loss on the last state gives gradients that shrink with every step back in time, until they are
subnormal numbers. Some processors take many times longer over an operation on such numbers.
"""

from __future__ import annotations

import os

from rnnjit.codegen.isa import Isa

SUBNORMALS_VARIABLE = "RNNJIT_SUBNORMALS"
_FLUSH, _EXACT = "flush", "exact"

#: The bit of MXCSR that makes subnormal results zero (FTZ). That which reads subnormal operands as
#: zeros (DAZ) stays as it is: the gradient of ReLU would vanish wherever its output is subnormal.
#: Where results are flushed, only the caller's tensors bring subnormal operands.
MXCSR_FLUSH = 0x8000


def flush_subnormals() -> bool:
    """Whether backward kernels that are loaded now flush, by RNNJIT_SUBNORMALS.

    Raises:
        ValueError: RNNJIT_SUBNORMALS is neither "flush", the default, nor "exact".
    """
    value = os.environ.get(SUBNORMALS_VARIABLE) or _FLUSH
    if value not in (_FLUSH, _EXACT):
        raise ValueError(f"{SUBNORMALS_VARIABLE} must be one of {[_FLUSH, _EXACT]}, got {value!r}")
    return value == _FLUSH


def can_flush(isa: Isa) -> bool:
    """Whether backward kernels for an instruction set can flush.

    Only those for x86-64 can. AArch64's FPCR has but one bit for results and operands together,
    and its processors compute with subnormal numbers in hardware.
    """
    return isa.triple.startswith("x86_64")
