"""The arrays of a case: draws them, and passes them between processes as .npz files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from rnnjit.bench.records import Case

Array = NDArray[np.floating]

#: Steps whose results are checked when streaming, so that a state that is not passed on shows.
FRAMES = 8

_WEIGHT = "weight of "


class Arrays(NamedTuple):
    """The arrays of a case, in its dtype; they must not be written to.

    Attributes:
        x: `[T, B, I]`; zeros after the end of a sequence. When streaming, T is `FRAMES`.
        h0: `[L*D, B, H]`.
        lengths: int64 `[B]`, in descending order, the first is T; None if all are T.
        weights: by nn.RNN's names, `weight_ih_l0` and so on.
        grad_y: `[T, B, D*H]`, zeros after the end of a sequence; all zeros for a loss on h_n alone.
        grad_h_n: `[L*D, B, H]`.
    """

    x: Array
    h0: Array
    lengths: NDArray[np.int64] | None
    weights: Mapping[str, Array]
    grad_y: Array
    grad_h_n: Array


def draw(case: Case) -> Arrays:
    """Draw the arrays of a case, in float64 and rounded; every call gives the same arrays.

    Inputs, states and gradients are standard normal; weights are uniform, as nn.RNN initialises
    them.
    """
    generator = _generator(case, 0)
    steps = FRAMES if case.mode == "streaming" else case.T
    state = (case.layers * case.directions, case.B, case.H)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(case.dtype)

    lengths = lengths_of(case) if case.packed else None
    x, grad_y = normal(steps, case.B, case.I), normal(steps, case.B, case.directions * case.H)
    if case.mode == "last state":
        grad_y[:] = 0
    if lengths is not None:
        over = np.arange(steps)[:, None] >= lengths
        x[over] = 0
        grad_y[over] = 0
    bound = case.H**-0.5
    weights = {
        name: generator.uniform(-bound, bound, shape).astype(case.dtype)
        for name, shape in weight_shapes(case).items()
    }
    return Arrays(x, normal(*state), lengths, weights, grad_y, normal(*state))


def lengths_of(case: Case) -> NDArray[np.int64]:
    """The lengths of the sequences, int64 `[B]`: T, or if packed, uniform in 1 to T and sorted."""
    if not case.packed:
        return np.full(case.B, case.T)
    lengths = _generator(case, 1).integers(1, case.T, case.B, endpoint=True)
    lengths[0] = case.T
    lengths[1:][::-1].sort()
    return lengths


def _generator(case: Case, stream: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(msgspec.json.encode(case)), stream])


def weight_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by nn.RNN's names and in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(case.layers):
        inputs = case.H * case.directions if layer else case.I
        for suffix in suffixes(case, layer):
            shapes[f"weight_ih_{suffix}"] = (case.H, inputs)
            shapes[f"weight_hh_{suffix}"] = (case.H, case.H)
            shapes[f"bias_ih_{suffix}"] = (case.H,)
            shapes[f"bias_hh_{suffix}"] = (case.H,)
    return shapes


def suffixes(case: Case, layer: int) -> list[str]:
    """The suffixes of the names of a layer's weights, one for each direction."""
    return [f"l{layer}", f"l{layer}_reverse"] if case.bidirectional else [f"l{layer}"]


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays of a case."""
    lengths = {} if arrays.lengths is None else {"lengths": arrays.lengths}
    weights = {_WEIGHT + name: weight for name, weight in arrays.weights.items()}
    rest = arrays._asdict()
    del rest["lengths"], rest["weights"]
    save_results(path, {**rest, **lengths, **weights})


def load(path: Path) -> Arrays:
    """Read the arrays that `save` wrote.

    Raises:
        OSError, ValueError, KeyError: the file is missing, or is not such a file.
    """
    found = load_results(path)
    weights = {
        name.removeprefix(_WEIGHT): value
        for name, value in found.items()
        if name.startswith(_WEIGHT)
    }
    lengths = found.get("lengths")
    return Arrays(
        found["x"],
        found["h0"],
        None if lengths is None else lengths.astype(np.int64),
        weights,
        found["grad_y"],
        found["grad_h_n"],
    )


def save_results(path: Path, results: Mapping[str, NDArray[np.generic]]) -> None:
    """Write arrays by name."""
    with path.open("wb") as file:  # given a path, np.savez may append .npz
        np.savez(file, **results)  # type: ignore[arg-type]  # its other arguments have no such names


def load_results(path: Path) -> dict[str, Array]:
    """Read the arrays that `save_results` wrote, by name.

    Raises:
        OSError, ValueError: the file is missing, is not such a file, or contains Python objects.
    """
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
