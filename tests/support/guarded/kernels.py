"""Kernels of the CPU backends that find nothing but guarded memory in their argument blocks.

What a backend allocates is guarded by `memory.allocating`; here the argument block itself comes
to such memory, parts of one allocation come apart, and inputs can only be read during the call. The
sizes of parts are those that the backends' `arguments` promise, and not taken from what allocates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from guarded.memory import Guards, Region
from rnnjit.codegen import plan
from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.kernel import Kind
from rnnjit.ir import CellSpec

_WEIGHTS = tuple(f"{kind}_{d}" for d in range(2) for kind in ("w_ih", "w_hh", "b_ih", "b_hh"))
_MATRICES = tuple(name for name in _WEIGHTS if name.startswith("w"))
_GRADIENTS = ("grad_x", "grad_h0")
_PROJECTIONS = ("w_hr_0", "w_hr_1")
_OTHER_GRADIENTS = tuple(f"grad_{kind}_{d}" for d in range(2) for kind in ("b_hh", "w_hr"))
_WEIGHT_GRADIENTS = tuple(f"grad_{kind}_{d}" for d in range(2) for kind in ("w_ih", "w_hh", "b"))


class Layout(NamedTuple):
    """What a kernel's argument block holds.

    Attributes:
        fields: the named tuple of its fields.
        inputs, outputs: the fields that are addresses of tensors, or 0.
        parts: from (arguments, bytes of an element, threads, lanes) to the bytes of each part of
            the scratch memory, by field.
        tables: from arguments to the elements of each table of int64 that is read.
        behind: of the addresses behind the fields, those of the states but the first and of the
            parameters: "r" for what is read, "w" for what is written.
    """

    fields: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: Callable[[Any, int, int, int], dict[str, int]]
    tables: Callable[[Any], dict[str, int]] = lambda a: {}
    behind: str = ""

    def addresses_behind(self, block: Any, access: str) -> list[int]:
        """The addresses behind the fields that are read, or written."""
        first, count = len(self.fields._fields), len(self.behind)
        found = zip(block[first : first + count], self.behind, strict=True)
        return [address for address, each in found if each == access and address]


def layouts(name: str, cell: CellSpec) -> tuple[Layout, Layout]:
    """Those of a backend's kernels, forward and backward.

    They have the same fields, except for the table of a packed batch. Sizes of parts are in bytes
    where `numba` has them, and in elements where `tvm` does.
    """
    arguments = import_module(f"rnnjit_{name}.arguments")
    rows, others, parameters = plan.REDUCTION_ROWS, len(cell.states) - 1, 2 * len(cell.parameters)
    table: tuple[str, ...] = ("sizes",)
    if name == "tvm":
        table = ()

    def tables(a: Any) -> dict[str, int]:
        return {"starts": a.T + 1} if name == "tvm" else {}

    def unit(size: int) -> int:
        return size if name == "tvm" else 1

    def forward(a: Any, size: int, threads: int, lanes: int) -> dict[str, int]:
        return {"scratch": (a.hoisted + a.D * a.hoisted_size) * unit(size)}

    def back(a: Any, size: int, threads: int, lanes: int) -> dict[str, int]:
        held = a.N if a.window == a.N else a.window + max(a.B, rows)
        wide = CellLayout(cell).dz_blocks * a.H + (a.P if a.w_hr_0 else 0)
        return {
            "scratch": (a.grad_out + max(threads, a.D) * a.grad_out_size) * unit(size),
            "dz_buffer": a.D * held * wide * size,
            "before": a.D * a.N * 8,
            "reduction": threads * a.reduction_size * unit(size),
        }

    return (
        Layout(
            arguments.ForwardArguments,
            (*table, "x", "h0", *_WEIGHTS, *_PROJECTIONS),
            ("y", "h_n", "values", "outputs"),
            forward,
            tables,
            behind="rww" * others + "r" * parameters,
        ),
        Layout(
            arguments.BackwardArguments,
            (
                *(*table, "x", "h0", "y", "grad_y", "grad_h_n", "values", "outputs"),
                *(*_MATRICES, *_PROJECTIONS),
            ),
            (*_GRADIENTS, *_WEIGHT_GRADIENTS, *_OTHER_GRADIENTS),
            back,
            tables,
            behind="rrrwr" * others + "r" * parameters + "w" * parameters,
        ),
    )


class Watch(NamedTuple):
    """Where kernels find memory, and who is told what they were called with.

    Attributes:
        guards: makes the memory.
        called: is given the arguments and the number of threads, after each call.
    """

    guards: Guards
    called: Callable[[Any, int], None]


class _Block:
    """An argument block in guarded memory, as far as a backend's `Kernel` uses one."""

    def __init__(self, words: torch.Tensor) -> None:
        self._words = words

    def buffer_info(self) -> tuple[int, int]:
        return self._words.data_ptr(), len(self._words)

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value


class _Kernel:
    """One kernel of a library, see the module's docstring; called as the backend's `Kernel` is."""

    def __init__(self, kernel: Any, layout: Layout, size: int, lanes: int, watch: Watch) -> None:
        self._kernel, self._layout, self._lanes, self._watch = kernel, layout, lanes, watch
        self._dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
        # What kernels compute with, unlike dz, is never narrower than this.
        self._computed = torch.float32 if size == 2 else self._dtype

    def __call__(self, block: Any, *rest: Any) -> None:
        layout, guards, threads = self._layout, self._watch.guards, rest[0]
        a = layout.fields(*block[: len(layout.fields._fields)])
        words = guards.empty((len(block),), torch.int64)
        words.copy_(torch.frombuffer(block, dtype=torch.int64))
        moved = {**self._tables(a), **self._parts(a, threads, *block.buffer_info())}
        for name, tensor in moved.items():
            words[layout.fields._fields.index(name)] = tensor.data_ptr()
        written = _addresses(a, layout.outputs) + layout.addresses_behind(block, "w")
        assert all(guards.region_at(address).writable for address in written)
        read = _addresses(a, layout.inputs) + layout.addresses_behind(block, "r")
        with _only_read([guards.region_at(address) for address in read]):
            self._kernel(_Block(words), threads)  # also after a thread that was late
        guards.check()
        self._watch.called(a, threads)

    def _tables(self, a: Any) -> dict[str, torch.Tensor]:
        """A copy of each table."""
        tables = {}
        for name, count in self._layout.tables(a).items():
            if getattr(a, name):
                content = (ctypes.c_int64 * count).from_address(getattr(a, name))
                table = torch.frombuffer(content, dtype=torch.int64)
                tables[name] = self._watch.guards.copy(table)
        return tables

    def _parts(self, a: Any, threads: int, own: int, words: int) -> dict[str, torch.Tensor]:
        """Memory apart for each part of the scratch memory, which may be behind the arguments."""
        guards, parts, last = self._watch.guards, {}, 0
        sizes = self._layout.parts(a, self._dtype.itemsize, threads, self._lanes)
        for start, name in sorted((getattr(a, name), name) for name in sizes):
            if start == 0 or sizes[name] == 0:
                continue
            inside = own <= start < own + 8 * words
            end = own + 8 * words if inside else guards.region_at(start).end
            assert last <= start, f"{name} lies over the part before it"
            last = start + sizes[name]
            assert last <= end, f"{name} is larger than what was allocated"
            own_dtypes = {"before": torch.int64, "dz_buffer": self._dtype}
            dtype = own_dtypes.get(name, self._computed)
            parts[name] = guards.empty((sizes[name] // dtype.itemsize,), dtype)
        return parts


def _addresses(a: Any, names: tuple[str, ...]) -> list[int]:
    return [getattr(a, name) for name in names if getattr(a, name, 0)]


@contextmanager
def _only_read(regions: list[Region]) -> Iterator[None]:
    before = {region.start: region.writable for region in regions}
    for region in regions:
        region.protect(writable=False)
    yield
    for region in regions:
        region.protect(writable=before[region.start])


@contextmanager
def guarded_backend(name: str, watch: Watch) -> Iterator[None]:
    """Within it, a backend's kernels are called by `_Kernel`."""
    run = import_module(f"rnnjit_{name}.run")
    loader = import_module(f"rnnjit_{name}.recipes")
    original = loader.library

    @cache
    def library(kind: Kind) -> Any:
        found, size = original(kind), kind.itemsize
        lanes = found.isa.lanes(kind.computed)
        forward, backward = (
            _Kernel(kernel, layout, size, lanes, watch)
            for kernel, layout in zip(
                (found.forward, found.backward), layouts(name, kind.cell), strict=True
            )
        )
        return SimpleNamespace(isa=found.isa, forward=forward, backward=backward)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "library", library)
        forget_recipes(run)
        yield
    forget_recipes(run)


def forget_recipes(run: Any) -> None:
    """Make a backend plan its calls anew."""
    for function in vars(run).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
