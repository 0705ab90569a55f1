"""Which kernel runs a recurrence, and with what extent: a small cost model, in one place.

It is plain arithmetic on what a device has (`DeviceProperties`), so that plans for a GPU can be
looked at without one. Its constants are estimates from the architectures' manuals: they have to
tell apart plans that differ by far more than they are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rnnjit import LayerSpec, Rows
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.kernels import (
    DType,
    KernelKey,
    Pass,
    Plan,
    blocks,
    column_tile,
    padded,
    row_choices,
    shared_bytes,
    threads,
)

PLANS: tuple[Plan, ...] = ("block", "grid", "step")

#: Float32 multiply-adds of a multiprocessor in a cycle, and the share of them that kernels reach.
_RATE, _SHARE = 128, 0.4
#: Capabilities whose multiprocessors do float64 at half that rate; others at a 64th.
_FAST_DOUBLES = ((8, 0), (9, 0), (10, 0))
#: Cycles of a step of the block-local plan besides its multiply-adds: two barriers and a tanh.
_BLOCK_STEP = 500
#: Cycles of the grid's barrier, through the L2 cache and back.
_GRID_STEP = 2500
#: Bytes of state that a multiprocessor reads from the L2 cache in a cycle.
_EXCHANGE_RATE = 48
#: Cycles that the host takes to start the kernels of one step.
_LAUNCH_STEP = 14_000


class Cut(NamedTuple):
    """How a recurrence is run.

    Attributes:
        key: the kernel.
        grid: blocks in x and y; per step and direction for "step".
        threads: of each block.
        shared: bytes of dynamic shared memory of each block.
        columns: hidden columns of a block, for "grid".
        cycles: what the model expects of a step.
    """

    key: KernelKey
    grid: tuple[int, int]
    threads: int
    shared: int
    columns: int
    cycles: float


def plan(
    layer: LayerSpec,
    rows: Rows,
    dtype: DType,
    pass_: Pass,
    device: DeviceProperties,
    among: tuple[Plan, ...] = PLANS,
) -> Cut:
    """The cut that the model expects to be quickest.

    Args:
        layer: what the layer is.
        rows: how its rows are laid over time.
        dtype: of its tensors.
        pass_: which recurrence.
        device: what it runs on.
        among: plans to choose from; "step" is there besides, since the others have limits.
    """
    found = [_step(layer, rows, dtype, pass_, device)]
    if "block" in among:
        found += _block(layer, rows, dtype, pass_, device)
    if "grid" in among:
        found += _grid(layer, rows, dtype, pass_, device)
    if "step" not in among and len(found) > 1:
        found = found[1:]
    return min(found, key=lambda cut: cut.cycles)


def _block(
    layer: LayerSpec, rows: Rows, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Cut]:
    """Cuts of the block-local plan: those whose matrix fits into a block's shared memory."""
    H, D = layer.hidden_size, layer.num_directions
    for count in row_choices("block", dtype):
        key = KernelKey("block", pass_, dtype, layer.cell, count)
        try:
            size, shared = threads(key, H), shared_bytes(key, H)
        except ValueError:
            continue
        if shared > device.shared_per_block:
            continue
        grid = blocks(key, D, rows.B, H)
        resident = device.multiprocessors * max(1, device.shared_per_multiprocessor // shared)
        waves = -(-grid[0] * grid[1] // resident)
        work = padded(H) ** 2 * count / _rate(dtype, device)
        yield Cut(key, grid, size, shared, 0, waves * (_BLOCK_STEP + work))


def _grid(
    layer: LayerSpec, rows: Rows, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Cut]:
    """Cuts of the grid-wide plan: those whose blocks can all run at once, one a multiprocessor."""
    H, D = layer.hidden_size, layer.num_directions
    per_direction = device.multiprocessors // D
    if not per_direction:
        return
    for count in row_choices("grid", dtype):
        key = KernelKey("grid", pass_, dtype, layer.cell, count)
        tile = column_tile(key)
        columns = -(-H // (per_direction * tile)) * tile
        try:
            size, shared = threads(key, H, columns), shared_bytes(key, H, columns)
        except ValueError:
            continue
        if shared > device.shared_per_block:
            continue
        tiles = -(-rows.B // count)
        work = tiles * count * columns * padded(H) / _rate(dtype, device)
        states = rows.B * padded(H) * (8 if dtype == "float64" else 4) / _EXCHANGE_RATE
        grid = blocks(key, D, rows.B, H, columns)
        yield Cut(key, grid, size, shared, columns, _GRID_STEP + work + states)


def _step(layer: LayerSpec, rows: Rows, dtype: DType, pass_: Pass, device: DeviceProperties) -> Cut:
    """The cut that always works: torch's matrix product, then a pointwise kernel, for each step."""
    H, D = layer.hidden_size, layer.num_directions
    key = KernelKey("step", pass_, dtype, layer.cell)
    work = rows.B * H * H / (_rate(dtype, device) * device.multiprocessors)
    grid = blocks(key, 1, max(rows.B, 1), H)
    return Cut(key, grid, threads(key, H), 0, 0, D * (_LAUNCH_STEP + work))


def _rate(dtype: DType, device: DeviceProperties) -> float:
    """Multiply-adds of a multiprocessor in a cycle."""
    if dtype != "float64":
        return _RATE * _SHARE
    return _RATE * _SHARE / (2 if device.capability in _FAST_DOUBLES else 64)
