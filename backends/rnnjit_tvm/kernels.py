"""All PrimFuncs of a kernel library."""

from __future__ import annotations

from typing import Any

from rnnjit.cpu import Isa
from rnnjit_tvm.backward import add_backward
from rnnjit_tvm.forward import add_forward
from rnnjit_tvm.host import tiles
from rnnjit_tvm.packing import add_packing
from rnnjit_tvm.pointwise import add_activate, add_activate_gradient
from rnnjit_tvm.reductions import add_reductions
from rnnjit_tvm.tensorir import Lanes, Module
from rnnjit_tvm.tiles import add_tiles
from rnnjit_tvm.walk import add_copy


def kernels(isa: Isa, bits: int) -> dict[str, Any]:
    """The PrimFuncs for elements of `bits` bits by name, those that they call among them."""
    module = Module(Lanes(bits, isa.lanes(bits // 8), isa.fma))
    add_copy(module)
    add_packing(module)
    add_activate(module)
    add_activate_gradient(module)
    add_tiles(module, tiles(isa))
    add_forward(module)
    add_backward(module)
    add_reductions(module, tiles(isa)[0][1])
    return module.functions
