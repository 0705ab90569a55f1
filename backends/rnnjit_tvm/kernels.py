"""All PrimFuncs of a kernel library."""

from __future__ import annotations

from typing import Any

from rnnjit.cells import Cell
from rnnjit.codegen import Isa
from rnnjit.codegen.subnormals import can_flush
from rnnjit_tvm.backward import add_backward
from rnnjit_tvm.forward import add_forward
from rnnjit_tvm.packing import add_packing
from rnnjit_tvm.pointwise import add_cell
from rnnjit_tvm.reductions import add_reductions
from rnnjit_tvm.tensorir import Lanes, Module
from rnnjit_tvm.tile_shapes import tile_shapes
from rnnjit_tvm.tiles import add_tiles
from rnnjit_tvm.time_loop import add_copy


def kernels(isa: Isa, bits: int, cell: Cell) -> dict[str, Any]:
    """A cell's PrimFuncs for elements of `bits` bits, by name, with those that they call."""
    module = Module(Lanes(bits, isa.lanes(bits // 8), isa.fma))
    add_copy(module)
    add_packing(module)
    add_cell(module, cell)
    add_tiles(module, tile_shapes(isa))
    add_forward(module)
    add_backward(module, can_flush(isa))
    add_reductions(module, tile_shapes(isa)[0][1])
    return module.functions
