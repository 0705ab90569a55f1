"""Runs CUDA kernels on the CPU, all blocks of a grid at once, in numba-cuda's simulator.

numba's own simulator (NUMBA_ENABLE_CUDASIM=1) runs one block after the other, so that blocks cannot
wait for each other, and each thread of a block in a thread of the operating system. Here each is a
greenlet, which is a hundred times faster, and then:

* blocks run interleaved, a barrier across the grid works, and a deadlock is an error;
* threads, warps and blocks run in an order, and at speeds, that a seed shuffles, and shared and
  local memory begin as NaN, so that a missing barrier shows as a wrong result;
* there are shuffles within a warp, which numba's simulator lacks.

It sees neither missing memory fences, nor bank conflicts, nor what depends on threads of a warp
running in step.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda import types
from numba.cuda.np import numpy_support
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator.kernelapi import Dim3, FakeCUDAModule

_WARP = 32
#: Shares of the turns in which blocks run.
_SPEEDS = (1.0, 0.1, 0.4)
#: Share of its block's turns in which the slow warp rests.
_REST = 0.8
#: Turns in which none got on, before one in which all may run.
_PATIENCE = 8


class Site(NamedTuple):
    """Where a kernel calls a block's barrier."""

    function: str
    line: int


def run(
    function: Callable[..., None],
    grid: Sequence[int],
    threads: int,
    shared: int,
    arguments: Sequence[Any],
    *,
    seed: int = 0,
    omit: Site | None = None,
) -> set[Site]:
    """Run a kernel to its end.

    Args:
        function: the kernel, plain Python whose module has numba's `cuda` as a global.
        grid: blocks in x, y and z; missing ones are 1.
        threads: of a block, in x.
        shared: bytes of dynamic shared memory of a block.
        arguments: numpy arrays, which are written in place, and numbers.
        seed: of the order in which threads run.
        omit: a barrier that does nothing, to see whether it is missed.

    Returns:
        Where the kernel called a block's barrier.

    Raises:
        RuntimeError: the threads wait for each other for ever.
    """
    extent = (*grid, 1, 1)[:3]
    module = _Module(extent, threads, shared, omit)
    hub = getcurrent()
    blocks = [_Block(Dim3(*index), shared) for index in np.ndindex(*extent)]

    def body() -> None:
        # In every thread, since each has numpy's settings of its own.
        with np.errstate(all="ignore"):
            function(*arguments)

    for block in blocks:
        block.threads = [_Thread(body, hub, block, index) for index in range(threads)]
    with _seen_by(function, module):
        _run_all(blocks, random.Random(seed))
    return module.sites


@contextmanager
def installed(seed: int = 0) -> Iterator[None]:
    """Has `cuda.jit(function)[grid, threads, stream, shared](...)` go through `run`."""
    stock = simulator.FakeCUDAKernel.__call__

    def call(kernel: Any, *arguments: Any) -> None:
        assert kernel.block_dim[1:] == (1, 1), "blocks have one dimension here"
        extent = (kernel.grid_dim, kernel.block_dim[0], kernel.dynshared_size)
        run(kernel.fn, *extent, arguments, seed=seed)

    simulator.FakeCUDAKernel.__call__ = call
    try:
        yield
    finally:
        simulator.FakeCUDAKernel.__call__ = stock


class _Thread(greenlet):
    """A CUDA thread, and what it waits for: a barrier of its "block" or "warp", or to "spin"."""

    def __init__(self, body: Callable[[], None], hub: Any, block: _Block, index: int) -> None:
        super().__init__(body, hub)
        self.block, self.index, self.lane = block, index, index % _WARP
        self.place = Dim3(index, 0, 0)
        self.wait: str | None = None
        self.given: Any = None
        self.taken: dict[int, Any] = {}


class _Block:
    """A block: its threads, how often they run, and its shared memory, NaN at first."""

    def __init__(self, index: Any, shared: int) -> None:
        self.index = index
        self.threads: list[_Thread] = []
        self.speed, self.slow_warp = 1.0, 0
        self.dynamic = np.full(shared, 0xFF, np.uint8)

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        assert shape == 0, "only dynamic shared memory is simulated"
        kind = _numpy_type(dtype)
        return self.dynamic[: self.dynamic.size // kind.itemsize * kind.itemsize].view(kind)


class _Local:
    """Local memory, NaN at first."""

    def array(self, shape: int, dtype: Any, alignment: int | None = None) -> Any:
        kind = _numpy_type(dtype)
        return np.full(shape * kind.itemsize, 0xFF, np.uint8).view(kind)


class _Module(FakeCUDAModule):  # type: ignore[misc]  # numba ships no types
    """The module `cuda` that a kernel sees."""

    def __init__(self, grid: Sequence[int], threads: int, shared: int, omit: Site | None) -> None:
        super().__init__(grid, (threads, 1, 1), shared)
        self._local, self._omit = _Local(), omit
        self.sites: set[Site] = set()

    @property
    def shared(self) -> _Block:
        return self._thread.block

    @property
    def threadIdx(self) -> Any:
        return self._thread.place

    @property
    def blockIdx(self) -> Any:
        return self._thread.block.index

    @property
    def _thread(self) -> _Thread:
        thread = getcurrent()
        assert isinstance(thread, _Thread)
        return thread

    def syncthreads(self) -> None:
        site = _site(sys._getframe(1))
        self.sites.add(site)
        if site != self._omit:
            self._rest("block")

    def syncwarp(self, mask: int = 0xFFFFFFFF) -> None:
        self._rest("warp")

    def nanosleep(self, nanoseconds: int) -> None:
        self._rest("spin")

    def shfl_xor_sync(self, mask: int, value: Any, distance: int) -> Any:
        thread = self._thread
        thread.given = value
        self._rest("warp")
        return thread.taken.get(thread.lane ^ distance, value)

    def _rest(self, wait: str) -> None:
        thread = self._thread
        thread.wait = wait
        assert thread.parent is not None
        thread.parent.switch()


def _run_all(blocks: list[_Block], order: random.Random) -> None:
    """Let all threads run in turns, until all have ended.

    Some blocks run in few turns, and so does a warp of each block: who ought to wait for them, and
    does not, gets far ahead. Only a turn in which all may run, and none gets on, is a deadlock.
    """
    for place, block in enumerate(order.sample(blocks, len(blocks))):
        block.speed = _SPEEDS[place % len(_SPEEDS)]
        block.slow_warp = order.randrange(len(block.threads) // _WARP + 1)
    idle = 0
    while live := [block for block in blocks if block.threads]:
        everyone, moved = idle >= _PATIENCE, False
        for block in live:
            if everyone or order.random() < block.speed:
                resting = block.slow_warp if not everyone and order.random() < _REST else None
                moved = _run_some(block, resting, order) or moved
        if everyone and not moved:
            waiting = [(str(t.block.index), t.index, t.wait) for b in live for t in b.threads]
            raise RuntimeError(f"deadlock: block, thread and what it waits for: {waiting[:8]}")
        idle = 0 if moved else idle + 1


def _run_some(block: _Block, resting: int | None, order: random.Random) -> bool:
    """Let a block's threads run until they wait, but for a resting warp's; whether any got on."""
    moved = False
    ready = [
        thread
        for thread in block.threads
        if thread.wait in (None, "spin") and thread.index // _WARP != resting
    ]
    order.shuffle(ready)
    for thread in ready:
        spun, thread.wait = thread.wait == "spin", None
        thread.switch()
        moved = moved or not (spun and thread.wait == "spin")
    if moved:
        block.threads = [thread for thread in block.threads if not thread.dead]
        _release(block)
    return moved


def _release(block: _Block) -> None:
    """Let those go on who all wait at a barrier."""
    if all(thread.wait == "block" for thread in block.threads):
        for thread in block.threads:
            thread.wait = None
    warps: dict[int, list[_Thread]] = {}
    for thread in block.threads:
        warps.setdefault(thread.index // _WARP, []).append(thread)
    for warp in warps.values():
        if all(thread.wait == "warp" for thread in warp):
            taken = {thread.lane: thread.given for thread in warp}
            for thread in warp:
                thread.wait, thread.taken = None, taken


@contextmanager
def _seen_by(function: Callable[..., None], module: _Module) -> Iterator[None]:
    """Has all modules of a kernel's package see `module` as `cuda`."""
    package = function.__module__.partition(".")[0]
    names = [name for name in sys.modules if name.partition(".")[0] == package]
    spaces = [vars(sys.modules[name]) for name in names]
    swapped = [space for space in spaces if space.get("cuda") is cuda]
    for space in swapped:
        space["cuda"] = module
    try:
        yield
    finally:
        for space in swapped:
            space["cuda"] = cuda


def _site(frame: FrameType) -> Site:
    return Site(
        frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name,
        frame.f_lineno,
    )


def _numpy_type(dtype: Any) -> np.dtype[Any]:
    return np.dtype(numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
