"""The layout of a program's scratch memory (see `program`), which the caller allocates.

the number of rows, one word, then the argument block of the forward kernel
packed weights                 of the layer that is running, all directions
zeros [D, B, H]                the initial state where none is given
rows [N, D*H]                  of every second layer before the last; the others are in y
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit import RNNSpec
from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import LINE
from rnnjit_numba.arguments import ForwardArguments

#: Bytes of the number of rows and the argument block, in whole cache lines.
BLOCK = -(-8 * (1 + len(ForwardArguments._fields)) // LINE) * LINE


class Scratch(NamedTuple):
    """How much scratch memory a call takes: `fixed + B * per_sequence + N * per_row` bytes.

    Attributes:
        fixed: for the arguments and the packed weights.
        per_sequence: for the initial state.
        per_row: for the rows between layers.
    """

    fixed: int
    per_sequence: int
    per_row: int


def scratch(spec: RNNSpec, isa: Isa, bits: int) -> Scratch:
    """The scratch memory that a call of a stack's program takes."""
    size, width = bits // 8, spec.num_directions * spec.hidden_size
    packed = max(packed_bytes(spec, index, isa, size) for index in range(spec.num_layers))
    between = width * size if spec.num_layers > 1 else 0
    # Alignment may leave up to a cache line unused before each part.
    fixed = BLOCK + spec.num_directions * packed + 3 * LINE
    return Scratch(fixed, width * size, between)


def packed_bytes(spec: RNNSpec, index: int, isa: Isa, size: int) -> int:
    """Bytes of one direction's packed weights and bias."""
    lanes, layer = isa.lanes(size), spec.layer(index)
    wide_i, wide_h = -(-layer.input_size // lanes), -(-layer.hidden_size // lanes)
    return wide_h * ((wide_i + wide_h) * lanes + 1) * isa.vector_bytes
