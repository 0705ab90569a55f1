"""The compiled kernels of one cell and element type, ready to be called.

Object code is loaded by llvmlite rather than by TVM's runtime, and cached in
`rnnjit.runtime.object_cache`: a process that finds it there does not import tvm.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from rnnjit.codegen import Isa
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.kernel import Kernel, Kind, cache_key, cached, team_symbols
from rnnjit.codegen.subnormals import flush_subnormals
from rnnjit.ir import CellSpec
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit.runtime.linker import Linked
from rnnjit_tvm.arguments import Arguments, BackwardArguments, ForwardArguments, argument_count

_FORWARD = ("forward_alone", "forward_team")
_BACKWARD = ("backward_alone", "backward_team")
_BACKWARD_EXACT = ("backward_exact_alone", "backward_exact_team")


class Library:
    """Kernels loaded into this process.

    Args:
        isa: the instruction set that they were generated for.
        code: object code.
        flush: whether the backward kernel flushes subnormal numbers, where it can.
        cell: the cell.

    Attributes:
        isa: as given.
        forward, backward: the kernels.

    Raises:
        ValueError: `code` is not object code, or not that of these kernels.
    """

    def __init__(self, isa: Isa, code: bytes, flush: bool, cell: CellSpec) -> None:
        self.isa = isa
        entries = (*_FORWARD, *(_BACKWARD if flush else _BACKWARD_EXACT))
        # Threads that wait yield their cores by it.
        yields = {"sched_yield": _address_of("sched_yield")}
        linked = Linked(code, entries, {**team_symbols(), **yields})
        self.forward = _kernel(ForwardArguments, cell, linked, linked.addresses[:2])
        self.backward = _kernel(BackwardArguments, cell, linked, linked.addresses[2:])


def _address_of(function: str) -> int:
    """The address of a function of the C library."""
    found = ctypes.cast(getattr(ctypes.CDLL(None), function), ctypes.c_void_p).value
    assert found is not None
    return found


def _kernel(
    kind: type[Arguments], cell: CellSpec, linked: Linked, addresses: Sequence[int]
) -> Kernel:
    """The kernel with these arguments, by its entries for one thread and for a team."""
    sync, count = kind._fields.index("sync"), argument_count(kind, cell)
    return Kernel(linked, addresses[0], addresses[1:], sync, count)


@CompileOnce
def library(kind: Kind) -> Library:
    """The kernels of a kind on this machine, from the cache or compiled now."""
    isa, flush = host_isa(), flush_subnormals()

    def compile_code() -> bytes:
        from rnnjit_tvm.compiler import compile_kernels

        return compile_kernels(isa, kind.dtype, kind.cell)

    key = cache_key(isa, kind, ["apache-tvm"], __file__)
    return cached(key, lambda code: Library(isa, code, flush, kind.cell), compile_code)
