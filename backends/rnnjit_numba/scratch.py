"""The memory of a program (see `program`), which its caller allocates.

The scratch memory of a call, for whole sequences or for a step:

ADDRESSES words                addresses of the parts below; then the argument block of the kernel
packed weights                 of the layer that is running, all directions; not for a step
zeros [D, B, max(P, H)]        the initial state where none is given; not for a step
pre-activations                of at most `Z_ROWS` rows, for each direction
input projections              that are computed before their steps, for each direction; not for a
                               step
rows [N, D*P]                  of every second layer before the last; the others are in y

What is prepared once for many steps: an argument block, then the packed weights of all layers.
Every part begins with a cache line.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rnnjit import RNNSpec
from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import LINE, Kind
from rnnjit_numba.arguments import ForwardArguments, argument_count
from rnnjit_numba.forward_sizes import ForwardSizes

#: Words before the argument block.
ADDRESSES = 4
#: Rows whose input projection is computed before their steps, if there is one direction.
WINDOW = 64


class Layout(NamedTuple):
    """Bytes of the parts of a program's memory.

    Attributes:
        block: of the addresses and the argument block.
        packed: of the packed weights of the largest layer, all directions.
        zeros: of the initial state, per sequence.
        z: of the pre-activations of a row, in one direction.
        hoisted: of the input projection of a row, in one direction.
        between: of a row between layers.
        prepared: of each layer's packed weights, in one direction.
    """

    block: int
    packed: int
    zeros: int
    z: int
    hoisted: int
    between: int
    prepared: tuple[int, ...]

    @staticmethod
    def of(spec: RNNSpec, isa: Isa, dtype: torch.dtype) -> Layout:
        """That of a stack's program for tensors of a dtype."""
        layer, D = spec.layer(0), spec.num_directions
        size = dtype.itemsize
        sizes = [
            ForwardSizes.of(isa, Kind(dtype, each.cell), each, direct=False) for each in spec.layers
        ]
        words = ADDRESSES + argument_count(ForwardArguments, spec.cell)
        return Layout(
            block=aligned(8 * words),
            packed=aligned(D * max(each.packed for each in sizes)),
            zeros=D * max(layer.output_size, layer.hidden_size) * size,
            z=sizes[0].z,
            hoisted=sizes[0].row,
            between=D * layer.output_size * size if spec.num_layers > 1 else 0,
            prepared=tuple(aligned(each.packed) for each in sizes),
        )

    @property
    def prepared_bytes(self) -> int:
        """Bytes of all that is prepared for steps."""
        return self.block + sum(self.prepared)


def aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // LINE) * LINE
