"""Int8 layers with the code of processors that this machine need not be, on guarded memory.

`main("dot")` computes the dot products of bytes by plain vector code, on vectors of 512 bits, which
LLVM divides into those that there are. `main("halves")` multiplies pairs as processors other than
x86 do. Such code must not be taken from, or left in, the cache of other programs.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import int8_layers
from llvmlite import ir

from rnnjit.codegen.host import host_isa
from rnnjit.ir import LSTM
from rnnjit_numba import int8_plan, int8_rows, int8_tiles, library, recipes

CALLS = [(LSTM, *sizes) for sizes in (int8_layers.SIZES[5], int8_layers.PROJECTED[0])]


def dot(self, builder, a, w, total):
    """What `vpdpbusd` adds to each lane: the products of four unsigned and four signed bytes."""
    wide = ir.VectorType(int8_tiles.I32, 64)
    products = builder.mul(builder.zext(a, wide), builder.sext(w, wide))
    for byte in range(4):
        lanes = ir.Constant(total.type, [4 * lane + byte for lane in range(16)])
        total = builder.add(total, builder.shuffle_vector(products, products, lanes))
    return total


def main(kind):
    if kind == "dot":
        isa = replace(host_isa(), vector_bytes=64, registers=32)
        library.kernel_isa = lambda dtype: isa
        for module in (int8_plan, int8_rows, recipes):
            module.multiplies_bytes = lambda isa: True
        int8_tiles.Int8Products._multiply_add = dot
    else:
        int8_tiles._pairs = lambda isa: ""
    int8_layers.main(CALLS)


if __name__ == "__main__":
    main(sys.argv[1])
