"""Calls for `sweep`: sizes of 1 to 70 in every residue, and every way to divide the work."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from fuzzing import thorough
from own_cells import WIDER_CELLS

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec

LARGEST = 70
#: Constants of `rnnjit.codegen.row_slices` and `plan`.
COSTS = ("THREAD_WORK", "_SYNC_WORK", "STRIDED_FEATURES", "_WINDOW_ROWS", "_WINDOW_BATCHES")
_NEVER = 10**9
#: Which of the gradients of y, h_n and the other last states are given; one of the first two is.
_GRADS = ((True,) * 3, (True,) * 3, (True, False, True), (True, False, False), (False, True, False))
#: Values of these by which small calls are divided between threads in every way there is.
_COSTS = {
    "slices": (0, _NEVER, _NEVER, _NEVER, 1),
    "strides": (0, _NEVER, 1, _NEVER, 1),
    "parts or tail": (0, 0, _NEVER, _NEVER, 1),
    "windows": (0, 0, 1, 20, 1),
}


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        cell: of one of torch's layers, or of `WIDER_CELLS`.
        projected: whether it has a projection.
    """

    cell: CellSpec
    projected: bool = False

    @property
    def is_torchs(self) -> bool:
        """Whether it is the cell of one of torch's layers."""
        return self.cell not in WIDER_CELLS


#: Cells with parameters, row inputs and several states, one with and one without a product.
_OWN = {"all operations", "integrators"} if thorough() else {"all operations"}
#: From which a sweep draws those that the backend takes.
KINDS = (
    *(Kind(RNN_TANH), Kind(RNN_RELU), Kind(LSTM), Kind(LSTM, True), Kind(GRU)),
    *(Kind(cell) for cell in WIDER_CELLS if cell.name in _OWN),
)
#: Of which a program is compiled in every sweep.
_ALWAYS = (Kind(RNN_TANH), Kind(LSTM, True), Kind(GRU))


@dataclass(frozen=True)
class Case:
    """One call of a backend.

    Attributes:
        how: "layer" (forward, then backward), "shortcut", "stream", or, of a program that was
            compiled ahead of time, "program" or "steps".
        dtype: of all tensors.
        I, H, layers, directions: as in nn.RNN.
        lengths: of the sequences, the longest first.
        packed: whether rows are packed; else all sequences are as long as the first.
        cell: as in `Kind`.
        P: proj_size, as in nn.LSTM.
        bias: as in nn.RNN.
        threads: most that may take part.
        costs: values of the `COSTS`.
        grads: whether the gradients of y, of h_n, and of the other last states are given.
        needs: whether the gradients of x, h0, W_ih, W_hh, b_ih, b_hh, W_hr or the parameters, and
            the other initial states are needed; those of a second direction's weights always are.
        state: whether there is an initial state, where there need not be one.
        tiling: the value of RNNJIT_TILES, "" for any.
        seed: of all values.
    """

    how: str
    dtype: torch.dtype
    I: int
    H: int
    lengths: tuple[int, ...]
    layers: int = 1
    directions: int = 1
    packed: bool = False
    cell: CellSpec = RNN_TANH
    P: int = 0
    bias: bool = True
    threads: int = 1
    costs: tuple[int, ...] = _COSTS["slices"]
    grads: tuple[bool, bool, bool] = (True, True, True)
    needs: tuple[bool, ...] = (True,) * 8
    state: bool = True
    tiling: str = ""
    seed: int = 0

    @property
    def judged(self) -> bool:
        """Whether the results can be held against eager's.

        Where a cell has kinks, what two bytes round decides on which side of one a number lies.
        """
        kinks = {"relu", "leaky_relu", "abs", "sign", "minimum", "maximum", "clamp", "where"}
        names = {instruction.operation for instruction in self.cell.step.instructions}
        return self.dtype.itemsize > 2 or not kinks & names

    @property
    def trains(self) -> bool:
        """Whether a backward pass follows that of a layer."""
        return self.how == "layer" and self.dtype is not torch.float16

    @property
    def sizes(self) -> list[int]:
        """The rows of each step."""
        if not self.packed:
            return [len(self.lengths)] * self.lengths[0]
        return [sum(n > t for n in self.lengths) for t in range(self.lengths[0])]


def cases(
    backend: str,
    dtypes: tuple[torch.dtype, ...],
    kinds: list[Kind],
    tiles: dict[torch.dtype, list[tuple[int, int, str]]],
    lanes: dict[torch.dtype, int],
    more: int,
) -> Iterator[Case]:
    """The cases for one backend.

    Args:
        backend: its name.
        dtypes: those that it computes in.
        kinds: the layers that it takes.
        tiles: (rows, vectors) of each register tile, and the value of RNNJIT_TILES by which it is
            used, "" where it always is, by dtype.
        lanes: elements of a vector, by dtype.
        more: how many cases are added to those that are always run.
    """
    dice = random.Random(0)
    for dtype in dtypes:
        yield from _all_sizes(dice, kinds, dtype)
        yield from _few_rows(dice, kinds, dtype)
        yield from _all_tiles(dice, kinds, dtype, tiles[dtype], lanes[dtype])
        yield from _many_rows(dice, kinds, dtype)
        if dtype.itemsize == 2:
            continue
        yield from _stacks(dice, kinds, dtype, "shortcut")
        if backend == "numba":
            yield from _stacks(dice, kinds, dtype, "stream")
    for _ in range(more):
        dtype = dice.choice(dtypes)
        I, H, B = (dice.randint(1, LARGEST) for _ in range(3))
        T = dice.choice((1, 2, 3, 7, 20))
        case = _layer(dice, kinds, dtype, I, H, B, T)
        # The gradients of the last states alone may vanish on so long a way.
        yield replace(case, grads=(True,) * 3) if T == 20 else case


def programs(kinds: list[Kind], more: int) -> Iterator[list[Case]]:
    """Stacks to be compiled ahead of time, and the calls of each.

    One stack of each kind in `_ALWAYS`, and one in 100 more.
    """
    dice = random.Random(1)
    kinds = [kind for kind in kinds if kind.is_torchs]
    always = [kind for kind in _ALWAYS if kind in kinds]
    drawn = [*always, *(dice.choice(kinds) for _ in range(more // 100))]
    for index, (cell, projected) in enumerate(drawn):
        dtype = dice.choice((torch.float32, torch.float64))
        I, H = dice.randint(1, LARGEST), dice.randint(2, LARGEST)
        stack = {
            "layers": dice.randint(1, 3),
            "directions": 1 + index % 2,
            "cell": cell,
            "P": dice.randint(1, H - 1) if projected else 0,
            "bias": dice.random() < 0.7,
        }
        calls = [
            Case(
                *("program", dtype, I, H, _lengths(dice, B, T)),
                **stack,
                packed=dice.random() < 0.5,
                state=dice.random() < 0.5,
                seed=dice.getrandbits(30),
            )
            for B, T in ((1, 1), (1, 6), (2, 3), (3, 2), (1, 130), (7, 4), (13, 3), (75, 2))
        ]
        steps = [replace(case, how="steps", packed=False, directions=1) for case in calls]
        yield [*calls, *steps] if stack["directions"] == 1 else calls


def _all_sizes(dice: random.Random, kinds: list[Kind], dtype: torch.dtype) -> Iterator[Case]:
    """Every I, every H and every B, each with others of the others."""
    every = range(1, LARGEST + 1)
    for I, H, B in zip(*(dice.sample(every, LARGEST) for _ in range(3)), strict=True):
        yield _layer(dice, kinds, dtype, I, H, B, dice.choice((1, 2, 3, 5)))


def _few_rows(dice: random.Random, kinds: list[Kind], dtype: torch.dtype) -> Iterator[Case]:
    """Every I and every H, where weights are read as they lie."""
    every = range(1, LARGEST + 1)
    for I, H in zip(*(dice.sample(every, LARGEST) for _ in range(2)), strict=True):
        B = dice.randint(1, 6)
        yield _layer(dice, kinds, dtype, I, H, B, dice.randint(1, 6 // B))


def _all_tiles(
    dice: random.Random,
    kinds: list[Kind],
    dtype: torch.dtype,
    tiles: list[tuple[int, int, str]],
    lanes: int,
) -> Iterator[Case]:
    """Every register tile, alone and below larger ones, its last vector full or ragged."""
    for rows, vectors, tiling in tiles:
        for B in (rows, 8 + rows):
            H, I = (vectors * lanes - dice.choice((0, dice.randrange(lanes))) for _ in range(2))
            yield replace(_layer(dice, kinds, dtype, I, H, B, 7), tiling=tiling)


def _many_rows(dice: random.Random, kinds: list[Kind], dtype: torch.dtype) -> Iterator[Case]:
    """More rows than a reduction takes at a time, and than a window holds."""
    for B, T in ((1, 250), (3, 90), (30, 9), (66, 5)):
        for threads in (1, 2):
            case = _layer(
                dice, kinds, dtype, dice.randint(1, LARGEST), dice.randint(1, LARGEST), B, T
            )
            # The gradients of the last states alone would vanish on so long a way.
            options = {"grads": (True,) * 3, "threads": threads, "costs": _COSTS["windows"]}
            yield replace(case, directions=1, **options)


def _stacks(dice: random.Random, kinds: list[Kind], dtype: torch.dtype, how: str) -> Iterator[Case]:
    """Several layers without gradients, every I and every H."""
    kinds = [kind for kind in kinds if kind.is_torchs]
    every = range(1, LARGEST + 1)
    for I, H in zip(*(dice.sample(every, LARGEST) for _ in range(2)), strict=True):
        yield Case(
            *(how, dtype, I, H, (dice.choice((1, 2, 3, 5)),) * dice.choice((1, 1, 2, 5, 6, 9, 23))),
            layers=dice.randint(1, 3),
            directions=1 if how == "stream" else dice.randint(1, 2),
            **_options(dice, kinds, H),
        )


def _layer(
    dice: random.Random, kinds: list[Kind], dtype: torch.dtype, I: int, H: int, B: int, T: int
) -> Case:
    grads = dice.choice(_GRADS)
    needs = tuple(dice.random() < 0.6 for _ in range(8))
    options = _options(dice, kinds, H)
    # The whole input of such a cell may be row inputs.
    if options["cell"].row_inputs and dice.random() < 0.2:
        I = 0
    return Case(
        *("layer", dtype, I, H, _lengths(dice, B, T)),
        directions=dice.randint(1, 2),
        packed=dice.random() < 0.5,
        grads=grads,
        needs=needs if any(needs[:4]) and dice.random() < 0.5 else (True,) * 8,
        **options,
    )


def _options(dice: random.Random, kinds: list[Kind], H: int) -> dict:
    cell, projected = dice.choice(kinds)
    return {
        "cell": cell,
        "P": dice.randint(1, H - 1) if projected and H > 1 else 0,
        "bias": dice.random() < 0.7,
        "threads": dice.choice((1, 1, 2, 2, 4)),
        "costs": dice.choice(tuple(_COSTS.values())),
        "seed": dice.getrandbits(30),
    }


def _lengths(dice: random.Random, B: int, T: int) -> tuple[int, ...]:
    return tuple(sorted((T, *(dice.randint(1, T) for _ in range(B - 1))), reverse=True))
