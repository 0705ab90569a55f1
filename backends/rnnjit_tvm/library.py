"""The compiled kernels of one cell and element type, ready to be called.

Object code is loaded by llvmlite rather than by TVM's runtime, and cached in
`rnnjit.runtime.object_cache`: a process that finds it there does not import tvm.
"""

from __future__ import annotations

from rnnjit.codegen import Isa
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.kernel import Kernel, Kind, cache_key, cached, team_symbols
from rnnjit.codegen.subnormals import flush_subnormals
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit.runtime.linker import Linked

_FORWARD = ("forward_alone", "forward_pack_team", "forward_project_team", "forward_recur_team")
_BACKWARD = (
    "backward_alone",
    "backward_pack_team",
    "backward_recur_team",
    "backward_reduce_team",
)
_BACKWARD_EXACT = (
    "backward_exact_alone",
    "backward_pack_exact_team",
    "backward_recur_exact_team",
    "backward_reduce_exact_team",
)


class Library:
    """Kernels loaded into this process.

    Args:
        isa: the instruction set that they were generated for.
        code: object code.
        flush: whether the backward kernel flushes subnormal numbers, where it can.

    Attributes:
        isa: as given.
        forward, backward: the kernels.

    Raises:
        ValueError: `code` is not object code, or not that of these kernels.
    """

    def __init__(self, isa: Isa, code: bytes, flush: bool) -> None:
        self.isa = isa
        entries = (*_FORWARD, *(_BACKWARD if flush else _BACKWARD_EXACT))
        linked = Linked(code, entries, team_symbols())
        forward, backward = linked.addresses[: len(_FORWARD)], linked.addresses[len(_FORWARD) :]
        self.forward = Kernel(linked, forward[0], forward[1:])
        self.backward = Kernel(linked, backward[0], backward[1:])


@CompileOnce
def library(kind: Kind) -> Library:
    """The kernels of a kind on this machine, from the cache or compiled now."""
    isa, flush = host_isa(), flush_subnormals()

    def compile_code() -> bytes:
        from rnnjit_tvm.compiler import compile_kernels

        return compile_kernels(isa, *kind)

    key = cache_key(isa, kind, ["apache-tvm"], __file__)
    return cached(key, lambda code: Library(isa, code, flush), compile_code)
