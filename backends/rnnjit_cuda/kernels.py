"""Every kernel that the planner may use: its name, its launch shape and its memory.

Five families of kernels compute the same recurrences:

    "register"  one launch for all steps; a block has all of W_hh in its registers; of cells without
                a recurrent product, which have no W_hh, a thread has a hidden unit
    "block"     one launch for all steps; a block has all of W_hh in its shared memory
    "grid"      one launch for all steps; several blocks share W_hh, with a grid barrier each step
    "stream"    as "grid", but W_hh is read from global memory in each step
    "step"      the pointwise part of one step; torch computes the matrix product

This module is plain Python; its functions of integers, the layout of shared memory among them, are
also compiled into the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rnnjit.ir import RNN_RELU, RNN_TANH, CellSpec

Family = Literal["register", "block", "grid", "stream", "step"]
Pass = Literal["forward", "backward"]
DType = Literal["float32", "float64", "bfloat16", "float16"]

#: Bytes of a stored number, and of a number in arithmetic, in the state and between blocks.
_BYTES: dict[DType, tuple[int, int]] = {
    "float32": (4, 4),
    "float64": (8, 8),
    "bfloat16": (2, 4),
    "float16": (2, 4),
}
FAMILIES: tuple[Family, ...] = ("register", "block", "grid", "stream", "step")
#: The families that have kernels for cells other than Elman's.
CELL_FAMILIES: tuple[Family, ...] = ("register", "block", "grid", "stream", "step")
#: Those that have kernels for cells without a recurrent product.
_FREE_FAMILIES: tuple[Family, ...] = ("register", "step")
_PASSES: tuple[Pass, ...] = ("forward", "backward")
_WARP = 32
#: More threads than these gain little: two warps for each of a multiprocessor's schedulers.
_ENOUGH_THREADS = 256
#: Threads of a block of "register", for cells without a recurrent product.
_FREE_THREADS = 128
#: int64 elements between the counters of two directions, so that each has its own cache lines.
COUNTER_STRIDE = 32
#: Threads that share the sum of a column, for "register": of an Elman cell, and of others.
LANES, CELL_LANES = 4, 8
#: The values of `KernelKey.reach` for "register" and Elman cells, and those for others, whose
#: threads hold as many weights of each gate, but not more than the last of `REACHES` in all.
REACHES, CELL_REACHES = (8, 16, 32), (4, 8)


class KernelKey(NamedTuple):
    """Names a kernel.

    Attributes:
        family: how the work is divided between blocks.
        pass_: forward or backward recurrence.
        dtype: of all tensors; sums are in float64 if that is the dtype, else in float32.
        cell: what it computes.
        rows: batch rows that share one pass over the weights: those of a block ("block"), or of a
            tile ("grid", "stream"); 1 for the others.
        reach: weights of each gate that a thread holds, for "register"; 0 for the others, and for
            cells without a recurrent product.
        recorded: of a backward kernel, whether the states after every step have gradients; False
            for "step", whose caller adds them.
    """

    family: Family
    pass_: Pass
    dtype: DType
    cell: CellSpec
    rows: int = 1
    reach: int = 0
    recorded: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The fields as words, for people: the cell by its name, `recorded` where it is True."""
        *given, recorded = self
        found = [each.name if isinstance(each, CellSpec) else str(each) for each in given]
        return (*found, *(["recorded"] if recorded else []))

    def __str__(self) -> str:
        return "-".join(self.words)


def variants(cells: Sequence[CellSpec] = (RNN_TANH, RNN_RELU)) -> list[KernelKey]:
    """All kernels that the planner may use for some cells, by default those of nn.RNN."""
    return [
        KernelKey(family, pass_, dtype, cell, rows, reach, recorded)
        for family in FAMILIES
        for pass_ in _PASSES
        for dtype in _BYTES
        for cell in cells
        if family in families_of(cell)
        for rows in row_choices(family, cell)
        for reach in (reaches(cell) if family == "register" else (0,))
        for recorded in _recordings(family, pass_, cell)
    ]


def _recordings(family: Family, pass_: Pass, cell: CellSpec) -> tuple[bool, ...]:
    """The values of `KernelKey.recorded`; the first state of a cell is y, whose gradient is."""
    both = pass_ == "backward" and family != "step" and len(cell.states) > 1
    return (False, True) if both else (False,)


def families_of(cell: CellSpec) -> tuple[Family, ...]:
    """The families that have kernels for a cell."""
    if not cell.has_product:
        return _FREE_FAMILIES
    return FAMILIES if cell.is_elman else CELL_FAMILIES


def reaches(cell: CellSpec) -> tuple[int, ...]:
    """The values of `KernelKey.reach` that "register" has for a cell; too many gates have none."""
    if cell.is_elman:
        return REACHES
    if not cell.has_product:
        return (0,)
    return tuple(reach for reach in CELL_REACHES if reach * len(cell.gates) <= REACHES[-1])


def lanes(cell: CellSpec) -> int:
    """Threads that share the sum of a hidden unit, for "register"."""
    return LANES if cell.is_elman else CELL_LANES


class Sums(NamedTuple):
    """The sums of a hidden unit in each step: forward, one for each gate; backward, one over all.

    Attributes:
        of_unit: how many there are.
        gates: how many gates each runs over.
    """

    of_unit: int
    gates: int


def sums_of(key: KernelKey) -> Sums:
    """The sums of a kernel's hidden units; one over one gate for Elman cells."""
    G = len(key.cell.gates)
    return Sums(G, 1) if key.pass_ == "forward" else Sums(1, G)


def splits_of(count: int, across: int, of_unit: int, gates: int, vector: int) -> int:
    """Ranges that a block of "block" divides each sum into, for cells other than Elman's.

    Args:
        count: threads of the block; each computes `vector` sums over one range.
        across: the padded hidden size.
        of_unit: sums of each hidden unit.
        gates: gates that each runs over.
        vector: numbers in a vector.
    """
    most = gates * across // (2 * vector)
    return max(1, min(count * vector // (of_unit * across), most))


def row_choices(family: Family, cell: CellSpec) -> tuple[int, ...]:
    """The values of `KernelKey.rows` that a family has for a cell; registers limit them."""
    if family in ("register", "step"):
        return (1,)
    if family == "stream":
        return (1, 4)
    if family == "block":
        return (1, 2, 4) if cell.is_elman else (1, 2)
    return (1, 2, 4, 8)


def most_threads(key: KernelKey) -> int:
    """The most threads of a block, which share a multiprocessor's registers."""
    if key.family == "register":
        return lanes(key.cell) ** 2 * key.reach or _FREE_THREADS
    if key.dtype == "float64" or key.family in ("stream", "step"):
        return 256
    if key.cell.is_elman:
        return 512
    # What is kept for a hidden unit takes more registers.
    if key.family == "block":
        return _ENOUGH_THREADS
    return 384 if key.pass_ == "backward" else 512


def width(key: KernelKey) -> int:
    """Numbers in a vector of 16 bytes: what a thread reads of the state at once."""
    return 16 // _BYTES[key.dtype][1]


def stored_bytes(key: KernelKey) -> int:
    """Bytes of a stored number."""
    return _BYTES[key.dtype][0]


def column_tile(key: KernelKey) -> int:
    """Hidden columns that a warp of "grid" or "stream" computes; `columns` is a multiple of it."""
    return tile_columns(key.rows, width(key))


class Share(NamedTuple):
    """The share of the work of a block of "grid" or "stream".

    Attributes:
        columns: hidden columns of a block, a multiple of `column_tile`.
        splits: ranges of k that a sum is divided into, each computed by one warp.
        teams: tiles of batch rows that are computed at once.
        slab: batch rows of a block, a multiple of `KernelKey.rows`.
    """

    columns: int
    splits: int
    teams: int
    slab: int


def share(key: KernelKey, H: int, columns: int, slab: int) -> Share:
    """The share of a block with `columns` columns and `slab` rows, with as many warps as possible.

    Raises:
        ValueError: `columns` is not a multiple of `column_tile`, or needs too many warps.
    """
    tile, most = column_tile(key), most_threads(key) // _WARP
    if columns < 1 or columns % tile:
        raise ValueError(f"columns must be a multiple of {tile}, got {columns}")
    groups, slab = sums_of(key).of_unit * columns // tile, _up(slab, key.rows)
    if groups > most:
        raise ValueError(f"{key} has {most} warps in a block at most, and would need {groups}")
    teams = min(slab // key.rows, most // groups)
    splits = min(-(-padded(H) // (_WARP * width(key))), most // (groups * teams))
    return Share(columns, splits, teams, slab)


def threads(key: KernelKey, H: int, part: Share | None = None) -> int:
    """Threads of a block.

    Args:
        key: the kernel.
        H: hidden size.
        part: what a block does, for "grid" and "stream".

    Raises:
        ValueError: no block is large enough.
    """
    most, vector = most_threads(key), width(key)
    if key.family == "step":
        return min(most, _up(H, _WARP))
    if key.family == "register":
        count = _up(lanes(key.cell) * H, _WARP) if key.reach else most
    elif part is not None:
        groups = sums_of(key).of_unit * part.columns // column_tile(key)
        count = _WARP * groups * part.splits * part.teams
    else:
        # Each thread of a column has at least two vectors of the sums.
        across, G = padded(H), len(key.cell.gates)
        groups = max(1, min(_ENOUGH_THREADS // across, G * across // (2 * vector * vector)))
        count = _up(groups * across, _WARP)
        count = max(count, _up(sums_of(key).of_unit * across // vector, _WARP))
    if count > most:
        raise ValueError(f"{key} has {most} threads in a block at most, and would need {count}")
    return count


def shared_bytes(key: KernelKey, H: int, part: Share | None = None) -> int:
    """Bytes of dynamic shared memory of a block of `threads(key, H, part)` threads.

    Args:
        key: the kernel.
        H: hidden size.
        part: what a block does, for "grid" and "stream".
    """
    if key.family == "step":
        return 0
    store, real = _BYTES[key.dtype]
    if key.family == "register":
        return 2 * sums_of(key).gates * lanes(key.cell) * key.reach * real
    across, count = padded(H), threads(key, H, part)
    if part is None and key.cell.is_elman:
        splits = count // across * width(key)
        return key.rows * across * (1 + splits) * real + across * spread(across) * store
    if part is None:
        of_unit, gates = sums_of(key)
        splits = splits_of(count, across, of_unit, gates, width(key))
        reals = key.rows * across * (gates + splits * of_unit)
        return reals * real + of_unit * gates * across * spread(across) * store
    warps = count // _WARP
    parts = 2 * warps * key.rows * column_tile(key) * real
    rows_held = part.columns * len(key.cell.gates) if key.family == "grid" else 0
    return parts + rows_held * spread(across) * store


def blocks(
    key: KernelKey, D: int, B: int, H: int, part: Share | None = None
) -> tuple[int, int, int]:
    """The grid (x, y, z) of a launch; all its blocks must be resident at once for "grid", "stream".

    Args:
        key: the kernel.
        D: directions; 1 for "step", whose launches are for one direction each.
        B: batch size; the rows of the step, for "step".
        H: hidden size.
        part: what a block does, for "grid" and "stream".
    """
    if key.family == "step":
        return -(-H // threads(key, H)), min(B, 65535), 1
    if part is not None:
        return -(-H // part.columns), D, -(-B // part.slab)
    if not key.cell.has_product:
        return -(-B * H // threads(key, H)), D, 1
    return -(-B // key.rows), D, 1


def exchange_elements(key: KernelKey, grid: tuple[int, int, int], H: int, part: Share) -> int:
    """Elements of the buffer that blocks exchange states, or their gradients, through.

    They are float64 for dtype float64, else float32, and need not be initialised. For cells other
    than Elman's, threads keep the states of their own units there, too.
    """
    own = 0 if key.cell.is_elman else len(key.cell.states)
    return (2 * sums_of(key).gates + own) * grid[1] * grid[2] * part.slab * padded(H)


def counter_elements(grid: tuple[int, int, int]) -> int:
    """int64 elements of the grid barriers' counters, which must be zero at each launch."""
    return grid[1] * grid[2] * COUNTER_STRIDE


def padded(H: int) -> int:
    """H rounded up to whole vectors of any dtype."""
    return (H + 3) // 4 * 4


def spread(across: int) -> int:
    """Elements from one row of weights in shared memory to the next, given the padded length.

    It is an odd number of vectors of 4 elements, so that vectors of 8 rows are in different banks.
    """
    return (across // 4 | 1) * 4


def tile_columns(rows: int, vector: int) -> int:
    """`column_tile` by the rows of a tile and the width of a vector; registers limit it."""
    return 4 if rows * vector > 16 or (vector == 2 and rows > 2) else 8


def _up(count: int, unit: int) -> int:
    """`count` rounded up to a multiple of `unit`."""
    return -(-count // unit) * unit
