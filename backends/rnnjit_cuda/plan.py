"""Which kernel runs a recurrence, and with which launch shape: a small cost model, in one place.

It is plain arithmetic on the limits of a device (`DeviceProperties`), so that plans for a GPU can
be inspected without one. Its constants were fitted to times on an H200. On other devices they only
have to rank plans whose times differ by far more than the model's errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rnnjit import LayerSpec
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.kernels import (
    FAMILIES,
    DType,
    Family,
    KernelKey,
    Pass,
    Share,
    blocks,
    column_tile,
    families_of,
    lanes,
    padded,
    reaches,
    row_choices,
    share,
    shared_bytes,
    spread,
    stored_bytes,
    sums_of,
    threads,
    width,
)

#: Warp instructions that a multiprocessor starts in a cycle, and its registers.
_ISSUE, _REGISTERS = 4, 65536
#: Capabilities whose multiprocessors do float64 at half the rate of float32; others at a 64th.
_FAST_DOUBLES = ((8, 0), (9, 0), (10, 0))
#: Cycles of a step of the register kernels, which is one chain of dependent operations; registers
#: and warp instructions of a thread besides its weights and their multiply-adds.
_REGISTER_STEP, _REGISTER_REST, _REGISTER_WORK = 500, 56, 120
#: Bytes of shared memory that the system keeps of each block, and blocks that a multiprocessor
#: holds at most: 16, 24 or 32.
_RESERVED, _MOST_BLOCKS = 1024, 16
#: Registers of a thread of the block-local kernels.
_BLOCK_REGISTERS = 128
#: Cycles of a step of the block-local kernels, and of each of its rows, each as a constant and a
#: multiple of H; the part of these that another block on the same multiprocessor adds.
_BLOCK_STEP, _BLOCK_ROW, _BLOCK_MORE = (900, 6.2), (630, 5.0), 0.35
#: Cycles of the grid barrier: a constant, and for each block.
_GRID_BARRIER, _GRID_BLOCK = 2360, 5.8
#: Cycles of one tile of each team: a constant, for each iteration of a warp over k, for each row.
_GRID_TILE, _GRID_TURN, _GRID_ROW = 1370, 310, 40
#: Cycles for each warp instruction of the products, and of adding up the lanes' and splits' sums.
_GRID_PRODUCT, _GRID_SUM = 1.05, 2.6
#: Bytes of state that a multiprocessor reads in a cycle.
_STATE_RATE = 100
#: Bytes of weights that it reads in a cycle while all others read, from the L2 cache or memory.
_WEIGHT_RATE = 20
#: Cycles that the host takes to start the kernels of one step: 40 to 80 us.
_LAUNCH_STEP = 120_000
#: Float32 multiply-adds of a multiprocessor in a cycle, and the part that matrix products reach.
_RATE, _SHARE = 128, 0.6


class Plan(NamedTuple):
    """How a recurrence is run.

    Attributes:
        key: the kernel.
        grid: blocks in x, y and z; per step and direction for "step".
        threads: of each block.
        shared: bytes of dynamic shared memory of each block.
        part: what a block does, for "grid" and "stream".
        cycles: of a step, as the model predicts.
    """

    key: KernelKey
    grid: tuple[int, int, int]
    threads: int
    shared: int
    part: Share | None
    cycles: float


def plan(
    layer: LayerSpec,
    B: int,
    dtype: DType,
    pass_: Pass,
    device: DeviceProperties,
    among: tuple[Family, ...] = FAMILIES,
) -> Plan:
    """The plan that the model predicts to be fastest.

    Args:
        layer: what the layer is.
        B: batch size.
        dtype: of its tensors.
        pass_: which recurrence.
        device: what it runs on.
        among: families to choose from; "step" is also used if none of these can run the layer.
    """
    found = list(candidates(layer, B, dtype, pass_, device, among))
    if "step" in among or not found:
        found.append(_step(layer, B, dtype, pass_, device))
    return min(found, key=lambda each: each.cycles)


def candidates(
    layer: LayerSpec,
    B: int,
    dtype: DType,
    pass_: Pass,
    device: DeviceProperties,
    among: tuple[Family, ...] = FAMILIES,
) -> Iterator[Plan]:
    """All plans by persistent kernels that the device has room for; arguments as for `plan`."""
    if layer.proj_size:
        return
    for name, found in (
        ("register", _register),
        ("block", _block),
        ("grid", _grid),
        ("stream", _stream),
    ):
        if name in among and name in families_of(layer.cell):
            yield from found(layer, B, dtype, pass_, device)


def why_not(
    family: Family,
    layer: LayerSpec,
    B: int,
    dtype: DType,
    pass_: Pass,
    device: DeviceProperties,
) -> str | None:
    """Why a family has no plan for a layer, in a sentence; None if it has one.

    Args:
        family: the family.
        layer: what the layer is.
        B: batch size.
        dtype: of its tensors.
        pass_: which recurrence.
        device: what it would run on.
    """
    if family == "step":
        return None
    if layer.proj_size:
        return "a projection is a second product in each step, which only 'step' computes"
    if family not in families_of(layer.cell):
        return f"cell {layer.cell.name!r} has no recurrent product, and so no weights to keep"
    if next(candidates(layer, B, dtype, pass_, device, (family,)), None) is not None:
        return None
    H, cell, G = layer.hidden_size, layer.cell, len(layer.cell.gates)
    of_gates = f"{H} hidden units of {G} gates"
    if family == "register":
        most = max((lanes(cell) * reach for reach in reaches(cell)), default=0)
        return f"{of_gates}: the registers of a block hold the weights of {most}"
    key = KernelKey(family, pass_, dtype, cell)
    room = f"of {device.shared_per_block:,} bytes of shared memory that a block may have"
    if family == "block":
        weights = G * padded(H) * spread(padded(H)) * stored_bytes(key)
        return f"{of_gates} in {dtype} need {weights:,} {room} for W_hh alone"
    if family == "grid":
        blocks_there = max(1, device.multiprocessors // layer.num_directions)
        tile = column_tile(key)
        units = -(-H // (blocks_there * tile)) * tile
        weights = G * units * spread(padded(H)) * stored_bytes(key)
        return f"{of_gates} in {dtype}: a block's {units} units need {weights:,} {room}"
    return f"{of_gates}: {device.multiprocessors} multiprocessors have too few warps for them"


def _register(
    layer: LayerSpec, B: int, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Plan]:
    """A plan for the register kernel with the fewest registers, if the layer is small enough.

    One without a recurrent product always is.
    """
    H, D = layer.hidden_size, layer.num_directions
    cell, G = layer.cell, len(layer.cell.gates)
    reach = next((reach for reach in reaches(cell) if lanes(cell) * reach >= H), None)
    if not cell.has_product:
        reach = 0
    if reach is None:
        return
    key = KernelKey("register", pass_, dtype, layer.cell, reach=reach)
    size, slow = threads(key, H), _slowness(dtype, device)
    each = G * reach * (2 if dtype == "float64" else 1) + _REGISTER_REST
    grid = blocks(key, D, B, H)
    waves, beside = _waves(grid[0] * D, _room(size, 0, each, device), device)
    work = beside * size // 32 * (G * reach * slow + _REGISTER_WORK) / _ISSUE
    cycles = waves * (_REGISTER_STEP + work)
    yield Plan(key, grid, size, shared_bytes(key, H), None, cycles)


def _block(
    layer: LayerSpec, B: int, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Plan]:
    """Plans for the block-local kernels whose matrix fits into a block's shared memory."""
    H, D = layer.hidden_size, layer.num_directions
    for count in row_choices("block", layer.cell):
        key = KernelKey("block", pass_, dtype, layer.cell, count)
        try:
            size, shared = threads(key, H), shared_bytes(key, H)
        except ValueError:
            continue
        if shared > device.shared_per_block:
            continue
        grid = blocks(key, D, B, H)
        waves, beside = _waves(grid[0] * D, _room(size, shared, _BLOCK_REGISTERS, device), device)
        G = len(layer.cell.gates)
        step, row = (fixed + each * G * H for fixed, each in (_BLOCK_STEP, _BLOCK_ROW))
        work = step + count * row * max(1, _slowness(dtype, device) / 2)
        cycles = waves * work * (1 + _BLOCK_MORE * (beside - 1))
        yield Plan(key, grid, size, shared, None, cycles)


def _room(size: int, shared: int, registers: int, device: DeviceProperties) -> int:
    """Blocks that a multiprocessor holds at once.

    Args:
        size: threads of a block.
        shared: bytes of its shared memory.
        registers: of a thread.
        device: that it runs on.
    """
    by_shared = device.shared_per_multiprocessor // (shared + _RESERVED)
    by_threads = min(device.threads_per_multiprocessor, _REGISTERS // registers) // size
    return max(1, min(by_shared, by_threads, _MOST_BLOCKS))


def _waves(blocks: int, room: int, device: DeviceProperties) -> tuple[int, int]:
    """The waves in which the blocks run, if a multiprocessor has room for `room` of them.

    Returns:
        The number of waves, and the most blocks that a multiprocessor runs at once.
    """
    each = -(-blocks // device.multiprocessors)
    return -(-each // room), min(each, room)


def _grid(
    layer: LayerSpec, B: int, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Plan]:
    """Plans for the grid-wide kernels: all blocks run at once, one on each multiprocessor."""
    return _cooperative("grid", layer, B, dtype, pass_, device)


def _stream(
    layer: LayerSpec, B: int, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Plan]:
    """Plans for the grid-wide kernels that read the weights in each step."""
    return _cooperative("stream", layer, B, dtype, pass_, device)


def _cooperative(
    family: Family, layer: LayerSpec, B: int, dtype: DType, pass_: Pass, device: DeviceProperties
) -> Iterator[Plan]:
    """Plans for kernels with a grid barrier, whose columns and slabs let all blocks run at once."""
    H, D = layer.hidden_size, layer.num_directions
    for count in row_choices(family, layer.cell):
        key = KernelKey(family, pass_, dtype, layer.cell, count)
        tile = column_tile(key)
        for slabs in _slab_counts(-(-B // count), device.multiprocessors // D):
            columns = -(-H // (device.multiprocessors // (D * slabs) * tile)) * tile
            try:
                part = share(key, H, columns, -(-B // slabs))
            except ValueError:
                continue
            size, shared = threads(key, H, part), shared_bytes(key, H, part)
            if shared > device.shared_per_block:
                continue
            grid = blocks(key, D, B, H, part)
            yield Plan(key, grid, size, shared, part, _cooperative_cycles(key, H, part, device))


def _slab_counts(tiles: int, most: int) -> Iterator[int]:
    """The numbers of slabs that `tiles` tiles may be cut into: 1, 2, 3, 4, 6, 8, 12, ..."""
    count = 1
    while count <= min(tiles, most):
        yield count
        if count > 1 and count + count // 2 <= min(tiles, most):
            yield count + count // 2
        count *= 2


def _cooperative_cycles(key: KernelKey, H: int, part: Share, device: DeviceProperties) -> float:
    """The predicted cycles of a step of the kernels with a grid barrier."""
    tile, vector, slow = column_tile(key), width(key), _slowness(key.dtype, device)
    of_unit, gates = sums_of(key)
    groups, tiles = of_unit * part.columns // tile, part.slab // key.rows
    rounds = -(-tiles // part.teams)
    turns = gates * -(-padded(H) // (32 * vector * part.splits))
    sums = key.rows * tile
    products = tiles * groups * sums * gates * padded(H) / 32 * slow / _ISSUE
    summing = rounds * part.teams * part.splits * groups * 3 * sums / _ISSUE
    states = tiles * groups * key.rows * gates * padded(H) * (16 / vector)
    barrier = _GRID_BARRIER + _GRID_BLOCK * -(-H // part.columns)
    chain = rounds * (_GRID_TILE + _GRID_TURN * turns + _GRID_ROW * key.rows)
    work = _GRID_PRODUCT * products + _GRID_SUM * summing + states / _STATE_RATE
    if key.family == "stream":
        weights = of_unit * gates * part.columns * padded(H)
        work += rounds * weights * stored_bytes(key) / _WEIGHT_RATE
    return barrier + chain + work


def _step(layer: LayerSpec, B: int, dtype: DType, pass_: Pass, device: DeviceProperties) -> Plan:
    """The plan for any layer: torch's matrix product and a pointwise kernel in each step."""
    H, D = layer.hidden_size, layer.num_directions
    key = KernelKey("step", pass_, dtype, layer.cell)
    slow = 1 if device.capability in _FAST_DOUBLES else _slowness(dtype, device)
    work = len(layer.cell.gates) * B * H * H * slow / (_RATE * _SHARE * device.multiprocessors)
    grid = blocks(key, 1, max(B, 1), H)
    return Plan(key, grid, threads(key, H), 0, None, D * max(_LAUNCH_STEP, work))


def _slowness(dtype: DType, device: DeviceProperties) -> float:
    """Cycles of a multiply-add, relative to those in float32."""
    if dtype != "float64":
        return 1
    return 2 if device.capability in _FAST_DOUBLES else 64
