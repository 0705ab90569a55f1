"""The numbers of a case: drawn, and handed from process to process as .npz files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from rnnjit.bench.contestant import FRAMES, Array, Arrays
from rnnjit.bench.records import Case

_WEIGHT = "weight of "


def draw(case: Case) -> Arrays:
    """The numbers of a case, the same at every call: drawn in float64 and rounded.

    Inputs, states and gradients are standard normal, weights uniform as nn.RNN begins with.
    """
    generator = _generator(case, 0)
    steps = FRAMES if case.mode == "streaming" else case.T
    directions = 2 if case.bidirectional else 1
    state = (case.layers * directions, case.B, case.H)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(case.dtype)

    lengths = lengths_of(case)
    x, grad_y = normal(steps, case.B, case.I), normal(steps, case.B, directions * case.H)
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


def lengths_of(case: Case) -> NDArray[np.int64] | None:
    """The sequences' lengths `[B]`, uniform from 1 to T, the longest first; None if all are T."""
    if not case.packed:
        return None
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
        inputs = case.I if layer == 0 else case.H * (2 if case.bidirectional else 1)
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
