"""The compiled kernels of one element type, ready to be called."""

from __future__ import annotations

import ctypes
import gc
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

import llvmlite.binding as llvm

from rnnjit import codecache, cpu
from rnnjit.cpu import Isa
from rnnjit.once import Once, apart
from rnnjit.team import FORK, openmp
from rnnjit_numba.arguments import LINE
from rnnjit_numba.codegen import object_code, target_machine
from rnnjit_numba.host import host_isa

#: Bytes of a length in a file of parts.
_LENGTH = 8
_ENTRIES = ("forward_alone", "forward_team", "backward_alone", "backward_team")


class Kernel:
    """One kernel's two entries: called by one thread, and by every thread of a team.

    Args:
        engine: owns the code, which is gone when it is.
        alone: address of one entry.
        team: address of the other.
    """

    def __init__(self, engine: Any, alone: int, team: int) -> None:
        self._engine = engine
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(alone)
        self._team = team

    def __call__(self, block: array[int], sync: int, threads: int) -> None:
        """Run with an argument block (see `arguments`); the interpreter's lock is released.

        Args:
            block: the arguments and, behind them, zeroed room for threads to meet by.
            sync: index of the field that says where that is; set here.
            threads: size of the team.
        """
        address, _ = block.buffer_info()
        # One thread can run any plan, and in a forked child there is no other.
        if threads == 1 or FORK.forked:
            self._alone(address)
            return
        runtime = openmp()
        assert runtime is not None, "plans use one thread where there is no OpenMP"
        block[sync] = (address + 8 * (sync + 1) + LINE - 1) // LINE * LINE
        runtime.parallel(self._team, address, threads, 0)


class Library:
    """Kernels loaded into this process.

    Attributes:
        isa: the instruction set that they were generated for.
        forward, backward: the kernels.

    Raises:
        ValueError: the parts are not object code, or not that of these kernels.
    """

    def __init__(self, isa: Isa, parts: Sequence[bytes]) -> None:
        self.isa = isa
        runtime = openmp()
        for name in ("omp_get_thread_num", "omp_get_num_threads"):
            # Without a runtime no team is ever made; the symbols must resolve all the same.
            llvm.add_symbol(name, runtime.symbols[name] if runtime else 1)
        engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine(isa))
        for code in parts:
            reference = llvm.object_file.ObjectFileRef.from_data(code)
            # LLVM would crash over what it could not read.
            if not reference:
                raise ValueError("a part of a library is not object code")
            engine.add_object_file(reference)
        engine.finalize_object()
        addresses = [engine.get_function_address(name) for name in _ENTRIES]
        if not all(addresses):
            raise ValueError(f"a library lacks some of {_ENTRIES}")
        self.forward = Kernel(engine, *addresses[:2])
        self.backward = Kernel(engine, *addresses[2:])


@Once
def library(bits: int) -> Library:
    """The kernels for elements of `bits` bits on this machine, cached or compiled now."""
    isa = host_isa()
    key = _key(isa, bits)
    kept = codecache.fetch(key)
    if kept is not None:
        with suppress(ValueError):
            return Library(isa, _split(kept))
    parts = compile_kernels(isa, bits)
    codecache.keep(key, _joined(parts))
    return Library(isa, parts)


def compile_kernels(isa: Isa, bits: int) -> list[bytes]:
    """Object code of the kernels for elements of `bits` bits, for any instruction set.

    A part is optimised on another thread while numba lowers the next one on this.
    """
    with _no_collection():
        from rnnjit_numba import frontend

        jobs: list[Future[bytes]] = []
        try:
            for part in frontend.parts(isa, bits):
                jobs.append(apart(object_code, part.text, isa, part.symbols))
        finally:
            # No thread is in LLVM when this returns, whatever failed.
            wait(jobs)
        return [job.result() for job in jobs]


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: most of its time would be spent on objects that numba keeps."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _joined(parts: Sequence[bytes]) -> bytes:
    """Parts of a library as one file: each behind its length."""
    return b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in parts)


def _split(content: bytes) -> list[bytes]:
    """The parts of a file made by `_joined`."""
    parts, at = [], 0
    while at < len(content):
        start = at + _LENGTH
        at = start + int.from_bytes(content[at:start], "little")
        parts.append(content[start:at])
    return parts


def _key(isa: Isa, bits: int) -> str:
    """Names all that object code depends on: the sources, the compilers, the target."""
    versions = [version(name) for name in ("llvmlite", "numba")]
    return codecache.name_of(isa, bits, versions, files=(__file__, cpu.__file__))
