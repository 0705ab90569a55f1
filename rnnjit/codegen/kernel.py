"""Compiled kernels in this process: found on disk or compiled, and run on OpenMP's threads."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from time import perf_counter_ns
from typing import NamedTuple, TypeVar

import torch

from rnnjit import ir
from rnnjit.codegen.computed import computed
from rnnjit.codegen.isa import Isa
from rnnjit.ir import CellSpec
from rnnjit.runtime import object_cache
from rnnjit.runtime.late_threads import LateThreads
from rnnjit.runtime.openmp import FORK, openmp

L = TypeVar("L")
#: Bytes of a cache line.
LINE = 64
#: What the entries for teams call.
_TEAM_FUNCTIONS = ("omp_get_thread_num", "omp_get_num_threads")


class Kind(NamedTuple):
    """What kernels are compiled for, beside the machine.

    Attributes:
        dtype: of the tensors.
        cell: what they compute.
        quantized: whether the matrices are int8, see `LayerSpec.quantized`.
    """

    dtype: torch.dtype
    cell: CellSpec
    quantized: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element of a tensor."""
        return self.dtype.itemsize

    @property
    def computed(self) -> int:
        """Bytes of a number that is computed with."""
        return computed(self.dtype).itemsize

    @property
    def has_backward(self) -> bool:
        """Whether there is a backward kernel: float16 and int8 matrices are for inference."""
        return not self.quantized and self.dtype is not torch.float16

    @property
    def terms(self) -> int:
        """Adjacent elements that a product multiplies at a time: pairs of bfloat16."""
        return 2 if self.dtype is torch.bfloat16 else 1


class Kernel:
    """A kernel's entries: for one thread, and for every thread of a team, phase by phase.

    Each is a C function of one argument, the address of the kernel's argument block.

    Args:
        code: owns the code, which is gone when it is.
        alone: address of the entry for one thread.
        phases: addresses of the entries for teams, called one after the other; each call returns
            when all threads of the team have.
        sync: index of the argument that is the address of memory by which the threads synchronise,
            if there is one. The memory lies behind the arguments, and begins with a cache line.
        arguments: the number of arguments, if there is such memory.
    """

    def __init__(
        self,
        code: object,
        alone: int,
        phases: Sequence[int],
        sync: int | None = None,
        arguments: int = 0,
    ) -> None:
        self._code, self._phases, self._sync = code, tuple(phases), sync
        self._behind = 8 * arguments + LINE - 1
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(alone)

    def __call__(
        self, block: array[int], threads: int, late_threads: LateThreads | None = None
    ) -> None:
        """Run with an argument block; the interpreter's lock is released meanwhile.

        Args:
            block: the arguments and, where `sync` is one, zeroed memory to synchronise by.
            threads: size of the team.
            late_threads: what is known of calls like this one, and is to learn from it; None if
                they use the team in any case.
        """
        address, _ = block.buffer_info()
        # One thread can run any plan, and in a forked child there is no other.
        if threads == 1 or FORK.forked:
            self._alone(address)
            return
        start = perf_counter_ns()
        if late_threads is not None and late_threads.alone(start):
            self._alone(address)
            late_threads.ran_alone(perf_counter_ns() - start)
            return
        self._on_team(block, address, threads)
        if late_threads is not None:
            late_threads.ran_on_team(perf_counter_ns() - start)

    def _on_team(self, block: array[int], address: int, threads: int) -> None:
        runtime = openmp()
        assert runtime is not None, "plans use one thread where there is no OpenMP"
        sync = self._sync
        if sync is not None:
            block[sync] = (address + self._behind) // LINE * LINE
        for phase in self._phases:
            runtime.parallel(phase, address, threads, 0)


def team_symbols() -> dict[str, int]:
    """Addresses of OpenMP's functions that kernels call, by name, to link them with."""
    runtime = openmp()
    # Without a runtime no team is ever made; the symbols must resolve all the same.
    return {name: runtime.symbols[name] if runtime else 1 for name in _TEAM_FUNCTIONS}


def cache_key(isa: Isa, kind: Kind, compilers: Sequence[str], file: str) -> str:
    """Names all that object code depends on: machine, kind, compilers, sources, Python.

    Args:
        isa: what it is compiled for.
        kind: as well.
        compilers: names of the distributions that take part.
        file: any file of the package that has the kernels' sources.
    """
    versions = [version(name) for name in compilers]
    # The cell's digest says what it computes. Its gradient follows from the sources of `ir`.
    files = (file, __file__, ir.__file__)
    return object_cache.name_of(
        isa, kind.dtype, kind.cell.digest, kind.quantized, versions, files=files
    )


def cached(key: str, load: Callable[[bytes], L], compile_code: Callable[[], bytes]) -> L:
    """Code that the object cache holds, loaded; where it holds none, what is compiled now.

    Args:
        key: what the code is kept under.
        load: loads it, or raises ValueError for what is no such code.
        compile_code: makes it.
    """
    kept = object_cache.fetch(key)
    if kept is not None:
        with suppress(ValueError):
            return load(kept)
    code = compile_code()
    object_cache.keep(key, code)
    return load(code)
