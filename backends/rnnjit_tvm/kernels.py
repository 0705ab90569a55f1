"""All PrimFuncs of a kernel library."""

from __future__ import annotations

from typing import Any

import torch

from rnnjit.codegen import Isa
from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.subnormals import can_flush
from rnnjit.ir import CellSpec
from rnnjit_tvm.backward import add_backward
from rnnjit_tvm.cell_step import add_step, add_step_backward
from rnnjit_tvm.forward import add_forward
from rnnjit_tvm.packing import add_packing
from rnnjit_tvm.reductions import add_reductions
from rnnjit_tvm.tensorir import Lanes, Module
from rnnjit_tvm.tile_shapes import tile_shapes
from rnnjit_tvm.tiles import add_tiles
from rnnjit_tvm.time_loop import add_copy
from rnnjit_tvm.work_stealing import add_next_task


def kernels(isa: Isa, dtype: torch.dtype, cell: CellSpec) -> dict[str, Any]:
    """A cell's PrimFuncs for tensors of a dtype, by name, with those that they call."""
    size = dtype.itemsize
    module, layout = Module(Lanes(8 * size, isa.lanes(size), isa.fma)), CellLayout(cell)
    shapes = tile_shapes(isa)
    add_next_task(module)
    add_copy(module)
    add_packing(module)
    add_tiles(module, shapes)
    add_step(module, cell)
    add_forward(module, layout, shapes[0][1])
    add_step_backward(module, cell)
    add_backward(module, layout, can_flush(isa))
    add_reductions(module, layout, shapes[0])
    return module.functions
