"""The numbers of a case: drawn, and handed from process to process as .npz files."""

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

#: Steps of which the results are judged when streaming: a state that is not carried on shows.
FRAMES = 8

_WEIGHT = "weight of "


class Arrays(NamedTuple):
    """The numbers of a case, in its dtype; nothing of them may be written to.

    Attributes:
        x: `[T, B, I]`; zeros behind the end of a sequence. When streaming T is `FRAMES`.
        h0: `[L*D, B, H]`.
        lengths: int64 `[B]`, never growing, the first of them T; None if all are T.
        weights: by nn.RNN's names, `weight_ih_l0` and so on.
        grad_y: `[T, B, D*H]`, zeros behind the end of a sequence.
        grad_h_n: `[L*D, B, H]`.
    """

    x: Array
    h0: Array
    lengths: NDArray[np.int64] | None
    weights: Mapping[str, Array]
    grad_y: Array
    grad_h_n: Array


def draw(case: Case) -> Arrays:
    """The numbers of a case, the same at every call: drawn in float64 and rounded.

    Inputs, states and gradients are standard normal, weights uniform as nn.RNN begins with.
    """
    generator = _generator(case, 0)
    steps = FRAMES if case.mode == "streaming" else case.T
    state = (case.layers * case.directions, case.B, case.H)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(case.dtype)

    lengths = lengths_of(case) if case.packed else None
    x, grad_y = normal(steps, case.B, case.I), normal(steps, case.B, case.directions * case.H)
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
    """The sequences' lengths `[B]`: T, or if packed uniform from 1 to T, the longest first."""
    if not case.packed:
        return np.full(case.B, case.T)
    lengths = _generator(case, 1).integers(1, case.T, case.B, endpoint=True)
    lengths[0] = case.T
    lengths[1:][::-1].sort()
    return lengths


def _generator(case: Case, stream: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(msgspec.json.encode(case)), stream])


def weight_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by nn.RNN's name, in its order."""
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
    """What the names of a layer's weights end with, a suffix for each direction."""
    return [f"l{layer}", f"l{layer}_reverse"] if case.bidirectional else [f"l{layer}"]


def save(path: Path, arrays: Arrays) -> None:
    """Write the numbers of a case."""
    lengths = {} if arrays.lengths is None else {"lengths": arrays.lengths}
    weights = {_WEIGHT + name: weight for name, weight in arrays.weights.items()}
    rest = arrays._asdict()
    del rest["lengths"], rest["weights"]
    save_results(path, {**rest, **lengths, **weights})


def load(path: Path) -> Arrays:
    """What `save` wrote.

    Raises:
        OSError, ValueError, KeyError: it is no such file.
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
    with path.open("wb") as file:  # a name without .npz is left as it is
        np.savez(file, **results)  # type: ignore[arg-type]  # its other arguments have no such names


def load_results(path: Path) -> dict[str, Array]:
    """What `save_results` wrote.

    Raises:
        OSError, ValueError: it is no such file, or it holds objects.
    """
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
