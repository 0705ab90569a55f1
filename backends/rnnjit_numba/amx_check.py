"""Whether this machine's tile registers are used: what they compute is compared first.

Once in each process that multiplies bfloat16 on a processor with AMX, two products by its tiles are
compared, bit for bit, with those by the emulation (see `amx`). The thread sleeps while its tiles
hold operands, so that a system that loses them when another thread runs is found out, too.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import llvmlite.binding as llvm
import torch
from torch import Tensor

from rnnjit.codegen import ISA_VARIABLE, Isa, amx_permission
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.isa import has_amx
from rnnjit.codegen.kernel import cached
from rnnjit.runtime import object_cache
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit_numba.object_code import object_code, target_machine
from rnnjit_numba.tile_shapes import as_tiles_see

#: Rows and columns of the sums of each product, the second one of tiles that are not full.
SIZES = ((16, 16), (5, 3))
#: Microseconds that the thread sleeps.
_SLEEP = 1000


def kernel_isa(dtype: torch.dtype) -> Isa:
    """The instruction set of this machine's kernels for tensors of a dtype.

    Raises:
        ValueError: as `host_isa`.
    """
    isa = host_isa()
    if isa.amx == "emulated" and dtype is torch.bfloat16:
        return isa
    if isa.amx and dtype is torch.bfloat16 and not differs(isa):
        return isa
    return as_tiles_see(replace(isa, amx=""), dtype)


def why_no_tiles() -> str:
    """Why kernels do not use the tile registers that this processor has, or ""."""
    isa = host_isa()
    if not has_amx(llvm.get_host_cpu_features()):
        return ""
    if isa.amx == "tiles":
        return differs(isa)
    return amx_permission.refused() or f"{ISA_VARIABLE} asks for another instruction set"


@CompileOnce
def differs(isa: Isa) -> str:
    """How the products by an instruction set's tiles differ from the emulation's, or ""."""
    key = object_cache.name_of(
        isa, "amx", [version(name) for name in ("llvmlite", "numba")], files=(__file__,)
    )
    code = cached(key, lambda content: _Code(isa, content), lambda: _compiled(isa))
    return comparison(code.products("tiles"), code.products("emulated"))


def comparison(found: Tensor, expected: Tensor) -> str:
    """How many numbers of two tensors of float32 differ in their bits, in words, or ""."""
    different = found.view(torch.int32) != expected.view(torch.int32)
    count = int(different.sum())
    if not count:
        return ""
    return f"{count} of {found.numel()} sums by its tiles have other bits than they should"


def operands() -> tuple[Tensor, Tensor, Tensor]:
    """The operands of the compared products: `a` [16, 32], packed `b` [16, 32] and `c` [16, 16].

    Each row of `a` has an exponent of its own. The last ones are subnormal numbers, sums of them in
    the first columns as well, but not in the last columns, whose numbers in `b` are large.
    """
    source = torch.Generator(device="cpu").manual_seed(0)

    def random(columns: int) -> Tensor:
        shape = (16, columns)
        return torch.randn(shape, generator=source, dtype=torch.float32, device="cpu")

    exponents = torch.linspace(40, -130, 16, dtype=torch.float32, device="cpu").round()
    scale = torch.exp2(exponents)[:, None]
    a, b = (random(32) * scale).to(torch.bfloat16), random(32)
    b[:, 24:] *= 2.0**60
    return a, b.to(torch.bfloat16), random(16) * scale


class _Code:
    """The compiled products, loaded."""

    def __init__(self, isa: Isa, content: bytes) -> None:
        engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine(isa))
        reference = llvm.object_file.ObjectFileRef.from_data(content)
        # LLVM would crash on code that it could not read.
        if not reference:
            raise ValueError("this is no object code")
        engine.add_object_file(reference)
        engine.finalize_object()
        self._engine = engine

    def products(self, kind: str) -> Tensor:
        """The sums of both products, [2, 16, 16], zeros where there are none."""
        out = torch.zeros(2, 16, 16, dtype=torch.float32, device="cpu")
        tensors = (*operands(), out)
        address = self._engine.get_function_address(symbol(kind))
        if not address:
            raise ValueError("this is the object code of something else")
        addresses = (tensor.data_ptr() for tensor in tensors)
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(tensors))(address)(*addresses)
        return out


def symbol(kind: str) -> str:
    """The name of the function that multiplies by tiles of a kind."""
    return f"rnnjit_amx_products_{kind}"


def _compiled(isa: Isa) -> bytes:
    """Object code of the products by tile registers and by the emulation."""
    from rnnjit_numba.amx_products import compared_products

    kinds = ("tiles", "emulated")
    text = compared_products({kind: symbol(kind) for kind in kinds}, SIZES, _SLEEP)
    return object_code(text, isa, tuple(map(symbol, kinds)))
