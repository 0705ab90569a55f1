"""The compiled kernels of one cell and element type, ready to be called.

Object code is loaded by llvmlite rather than by TVM's run time, and kept in
`rnnjit.runtime.object_cache`: a process that finds it there does not import tvm.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

from rnnjit import cells, codegen
from rnnjit.cells import Cell
from rnnjit.codegen import Isa
from rnnjit.runtime import object_cache
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit.runtime.linker import Linked
from rnnjit.runtime.openmp import FORK, openmp
from rnnjit_tvm.host import host_isa

_FORWARD = ("forward_alone", "forward_pack_team", "forward_project_team", "forward_recur_team")
_BACKWARD = (
    "backward_alone",
    "backward_pack_team",
    "backward_recur_team",
    "backward_reduce_team",
)


class Kernel:
    """One kernel's entries: for one thread, and for every thread of a team, phase by phase.

    Args:
        linked: owns the code, which is gone when it is.
        alone: address of the entry for one thread.
        phases: addresses of the others.
    """

    def __init__(self, linked: Linked, alone: int, phases: Sequence[int]) -> None:
        self._linked = linked
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(alone)
        self._phases = phases

    def __call__(self, block: array[int], threads: int) -> None:
        """Run with an argument block (see `arguments`); the interpreter's lock is released.

        Args:
            block: the arguments.
            threads: size of the team.
        """
        address, _ = block.buffer_info()
        # One thread can run any plan, and in a forked child there is no other.
        if threads == 1 or FORK.forked:
            self._alone(address)
            return
        runtime = openmp()
        assert runtime is not None, "plans use one thread where there is no OpenMP"
        for phase in self._phases:
            runtime.parallel(phase, address, threads, 0)


class Library:
    """Kernels loaded into this process.

    Attributes:
        isa: the instruction set that they were generated for.
        forward, backward: the kernels.

    Raises:
        ValueError: `code` is not object code, or not that of these kernels.
    """

    def __init__(self, isa: Isa, code: bytes) -> None:
        self.isa = isa
        runtime = openmp()
        # Without a runtime no team is ever made; the symbols must resolve all the same.
        symbols = {
            name: runtime.symbols[name] if runtime else 1
            for name in ("omp_get_thread_num", "omp_get_num_threads")
        }
        linked = Linked(code, (*_FORWARD, *_BACKWARD), symbols)
        forward, backward = linked.addresses[: len(_FORWARD)], linked.addresses[len(_FORWARD) :]
        self.forward = Kernel(linked, forward[0], forward[1:])
        self.backward = Kernel(linked, backward[0], backward[1:])


@CompileOnce
def library(kind: tuple[int, Cell]) -> Library:
    """The kernels of a cell on this machine, cached or compiled now.

    Args:
        kind: bits of an element, and the cell.
    """
    bits, cell = kind
    isa = host_isa()
    key = _key(isa, bits, cell)
    kept = object_cache.fetch(key)
    if kept is not None:
        with suppress(ValueError):
            return Library(isa, kept)
    from rnnjit_tvm.compiler import compile_kernels

    code = compile_kernels(isa, bits, cell)
    object_cache.keep(key, code)
    return Library(isa, code)


def _key(isa: Isa, bits: int, cell: Cell) -> str:
    """Names all that object code depends on: the sources, the compiler, the target, the cell."""
    compiler = f"tvm {version('apache-tvm')}"
    # Of the cell's gradient, the digest tells nothing: it follows from the sources of `cells`.
    sources = (__file__, codegen.__file__, cells.__file__)
    return object_cache.name_of(isa, bits, cell.digest, compiler, files=sources)
