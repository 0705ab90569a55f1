"""The arrays of a case: draws them, and passes them between processes as .npz files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Case

Array = NDArray[np.floating]

#: Steps whose results are checked when streaming, so that a state that is not passed on shows.
FRAMES = 8

_WEIGHT = "weight of "
#: Fields of a case that reports of older versions lack, with what they stand for there. The seed of
#: such a case leaves them out: the lengths of its sequences must stay those that were measured.
_LATER_FIELDS = {"cell": "rnn", "proj_size": 0, "as_cell": False}


class Arrays(NamedTuple):
    """The arrays of a case, in its dtype; they must not be written to.

    numpy has no bfloat16: those of such a case hold its bits, in uint16. Those of a case of int8
    are float32: each contestant quantizes them in its own way.

    Attributes:
        x: `[T, B, I]`; zeros after the end of a sequence. When streaming, T is `FRAMES`.
        h0: `[L*D, B, P or H]`.
        lengths: int64 `[B]`, in descending order, the first is T; None if all are T.
        weights: by the layer's names, `weight_ih_l0` and so on.
        grad_y: `[T, B, D*(P or H)]`, zeros after the end of a sequence; all zeros for a loss on h_n
            alone.
        grad_h_n: `[L*D, B, P or H]`.
        c0: `[L*D, B, H]`, None if the layer has one state.
        grad_c_n: `[L*D, B, H]`, all zeros for a loss on h_n alone; None if the layer has one state.
    """

    x: Array
    h0: Array
    lengths: NDArray[np.int64] | None
    weights: Mapping[str, Array]
    grad_y: Array
    grad_h_n: Array
    c0: Array | None = None
    grad_c_n: Array | None = None

    @property
    def hx(self) -> tuple[Array, ...]:
        """The initial states: h0, and c0 if there is one."""
        return (self.h0,) if self.c0 is None else (self.h0, self.c0)

    @property
    def grad_hn(self) -> tuple[Array, ...]:
        """The gradients of the last states, in the order of `hx`."""
        return (self.grad_h_n,) if self.grad_c_n is None else (self.grad_h_n, self.grad_c_n)


def draw(case: Case) -> Arrays:
    """Draw the arrays of a case, in float64 and rounded; every call gives the same arrays.

    Inputs, states and gradients are standard normal; weights are uniform, as torch initialises
    them.
    """
    generator = _generator(case, 0)
    steps = FRAMES if case.mode == "streaming" else case.T
    count = case.layers * case.directions

    def normal(*shape: int) -> Array:
        return stored(generator.standard_normal(shape), case.dtype)

    lengths = lengths_of(case) if case.packed else None
    x = normal(steps, case.B, case.I)
    grad_y = normal(steps, case.B, case.directions * case.outputs)
    if case.mode == "last state":
        grad_y[:] = 0
    if lengths is not None:
        over = np.arange(steps)[:, None] >= lengths
        x[over] = 0
        grad_y[over] = 0
    bound = case.H**-0.5
    weights = {
        name: stored(generator.uniform(-bound, bound, shape), case.dtype)
        for name, shape in weight_shapes(case).items()
    }
    first, others = (count, case.B, case.outputs), (count, case.B, case.H)
    h0, grad_h_n = normal(*first), normal(*first)
    found = Arrays(x, h0, lengths, weights, grad_y, grad_h_n)
    if len(kind_of(case).states) == 1:
        return found
    c0, grad_c_n = normal(*others), normal(*others)
    if case.mode == "last state":
        grad_c_n[:] = 0
    return found._replace(c0=c0, grad_c_n=grad_c_n)


def stored(values: NDArray[np.floating[Any]], dtype: str) -> Array:
    """Finite values rounded to a dtype, to the nearest; for "bfloat16" its bits, in uint16."""
    if dtype != "bfloat16":
        rounded: Array = values.astype(storage(dtype))
        return rounded
    bits = values.astype("float32").view("uint32")
    found: Any = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("uint16")
    high: Array = found  # of integers, unlike the arrays of every other dtype
    return high


def in_float32(arrays: Arrays) -> Arrays:
    """The same numbers with those of bfloat16 widened to float32; others are as they are."""

    def widened(found: Any) -> Any:
        if isinstance(found, dict):
            return {name: widened(each) for name, each in found.items()}
        if getattr(found, "dtype", None) != np.uint16:
            return found
        return (found.astype("uint32") << 16).view("float32")

    return Arrays(*map(widened, arrays))


def storage(dtype: str) -> str:
    """The dtype of x, states and results in a case: its own, but for int8, which weights have."""
    return "float32" if dtype == "int8" else dtype


def itemsize(dtype: str) -> int:
    """Bytes of an element of a matrix in a case of this dtype."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def lengths_of(case: Case) -> NDArray[np.int64]:
    """The lengths of the sequences, int64 `[B]`: T, or if packed, uniform in 1 to T and sorted."""
    if not case.packed:
        return np.full(case.B, case.T)
    lengths = _generator(case, 1).integers(1, case.T, case.B, endpoint=True)
    lengths[0] = case.T
    lengths[1:][::-1].sort()
    return lengths


def _generator(case: Case, stream: int) -> np.random.Generator:
    fields = msgspec.structs.asdict(case)
    for name, default in _LATER_FIELDS.items():
        if fields[name] == default:
            del fields[name]
    return np.random.default_rng([zlib.crc32(msgspec.json.encode(fields)), stream])


def weight_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by the layer's names and in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    rows = len(kind_of(case).gates) * case.H
    for layer in range(case.layers):
        inputs = case.outputs * case.directions if layer else case.I
        for suffix in suffixes(case, layer):
            shapes[f"weight_ih_{suffix}"] = (rows, inputs)
            shapes[f"weight_hh_{suffix}"] = (rows, case.outputs)
            shapes[f"bias_ih_{suffix}"] = (rows,)
            shapes[f"bias_hh_{suffix}"] = (rows,)
            if case.proj_size:
                shapes[f"weight_hr_{suffix}"] = (case.proj_size, case.H)
    return shapes


def suffixes(case: Case, layer: int) -> list[str]:
    """The suffixes of the names of a layer's weights, one for each direction."""
    return [f"l{layer}", f"l{layer}_reverse"] if case.bidirectional else [f"l{layer}"]


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays of a case."""
    weights = {_WEIGHT + name: weight for name, weight in arrays.weights.items()}
    rest = {name: value for name, value in arrays._asdict().items() if value is not None}
    del rest["weights"]
    save_results(path, {**rest, **weights})


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
        found.get("c0"),
        found.get("grad_c_n"),
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
