"""The compiled kernels of one cell and element type, ready to be called."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import llvmlite.binding as llvm
import torch

from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import Kernel, Kind, cache_key, cached, team_symbols
from rnnjit.codegen.subnormals import flush_subnormals
from rnnjit.runtime import object_cache
from rnnjit.runtime.compile_once import CompileOnce, apart
from rnnjit_numba.amx_check import kernel_isa
from rnnjit_numba.arguments import (
    Arguments,
    BackwardArguments,
    ForwardArguments,
    argument_count,
)
from rnnjit_numba.object_code import object_code, target_machine

_COMPILERS = ("llvmlite", "numba")
#: The kind of file that object code of tiles is kept in.
_TILES = "tile"
#: Bytes of the length before each part in a cached file.
_LENGTH = 8
_FORWARD = ("forward_alone", "forward_team")
_BACKWARD = ("backward_alone", "backward_team")
_BACKWARD_EXACT = ("backward_exact_alone", "backward_exact_team")


class Library:
    """Kernels loaded into this process.

    Args:
        isa: the instruction set that they were generated for.
        parts: object code.
        flush: whether the backward kernel flushes subnormal numbers, where it can.
        kind: what they compute.

    Attributes:
        isa: as given.
        forward, backward: the kernels; no backward one without `Kind.has_backward`.

    Raises:
        ValueError: the parts are not object code, or not that of these kernels.
    """

    def __init__(self, isa: Isa, parts: Sequence[bytes], flush: bool, kind: Kind) -> None:
        self.isa = isa
        backward = _BACKWARD if flush else _BACKWARD_EXACT
        entries = (*_FORWARD, *backward) if kind.has_backward else _FORWARD
        for name, address in team_symbols().items():
            llvm.add_symbol(name, address)
        engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine(isa))
        for code in parts:
            reference = llvm.object_file.ObjectFileRef.from_data(code)
            # LLVM would crash on code that it could not read.
            if not reference:
                raise ValueError("a part of a library is not object code")
            engine.add_object_file(reference)
        engine.finalize_object()
        addresses = [engine.get_function_address(name) for name in entries]
        if not all(addresses):
            raise ValueError(f"a library lacks some of {entries}")
        count = argument_count(ForwardArguments, kind.cell, quantized=kind.quantized)
        self.forward = _kernel(ForwardArguments, count, engine, addresses[:2])
        self.backward: Kernel | None = None
        if kind.has_backward:
            count = argument_count(BackwardArguments, kind.cell)
            self.backward = _kernel(BackwardArguments, count, engine, addresses[2:])


def _kernel(kind: type[Arguments], count: int, engine: Any, addresses: Sequence[int]) -> Kernel:
    """The kernel with so many arguments, by its entries for one thread and for a team."""
    return Kernel(engine, addresses[0], addresses[1:], kind._fields.index("sync"), count)


@CompileOnce
def library(kind: Kind) -> Library:
    """The kernels of a kind on this machine, from the cache or compiled now."""
    isa, flush = kernel_isa(kind.dtype), flush_subnormals()
    return cached(
        cache_key(isa, kind, _COMPILERS, __file__),
        lambda content: Library(isa, _split(content), flush, kind),
        lambda: _joined(compile_kernels(isa, kind)),
    )


def compile_kernels(isa: Isa, kind: Kind) -> list[bytes]:
    """Object code of the kernels of a kind, for any instruction set.

    Another thread optimises a part while numba lowers the next one on this thread.
    """
    key = _tiles_key(isa, kind.dtype)
    tiles = None if kind.quantized else _kept_tiles(key)
    with _no_collection():
        from rnnjit_numba.kernel_modules import kernel_modules, tile_modules

        jobs: list[Future[bytes]] = []
        try:
            for module in tile_modules(isa, *kind) if tiles is None else ():
                jobs.append(apart(object_code, module.text, isa, module.symbols))
            count = len(jobs)
            for module in kernel_modules(isa, *kind):
                jobs.append(apart(object_code, module.text, isa, module.symbols))
        finally:
            # Even after a failure, no thread is in LLVM when this returns.
            wait(jobs)
        found = [job.result() for job in jobs]
    if tiles is None:
        tiles = found[:count]
    if count:
        object_cache.keep(key, _joined(tiles), _TILES)
    return [*tiles, *found[count:]]


def _tiles_key(isa: Isa, dtype: torch.dtype) -> str:
    """What the object code of the tiles is kept under, for the next cell's kernels."""
    versions = [version(name) for name in _COMPILERS]
    return object_cache.name_of(isa, dtype, versions, files=(__file__,))


def _kept_tiles(key: str) -> list[bytes] | None:
    """The parts that are kept of the tiles, if any."""
    kept = object_cache.fetch(key, _TILES)
    return None if kept is None else _split(kept)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection: most of its time would go to objects that numba keeps."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _joined(parts: Sequence[bytes]) -> bytes:
    """The parts of a library as one file: the length of each, then its content."""
    return b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in parts)


def _split(content: bytes) -> list[bytes]:
    """The parts of a file made by `_joined`."""
    parts, at = [], 0
    while at < len(content):
        start = at + _LENGTH
        at = start + int.from_bytes(content[at:start], "little")
        parts.append(content[start:at])
    return parts
