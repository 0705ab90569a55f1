"""The interface of a contestant: an implementation of recurrent layers, in its own process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

from rnnjit.bench.arrays import Array, Arrays
from rnnjit.bench.records import Case

ArrayT = TypeVar("ArrayT")


class Ready(NamedTuple):
    """A prepared case.

    Attributes:
        run: makes one call, as it is timed, and returns when the work is done. When streaming, the
            call is one step on the first frame, from the state of the previous call; in the other
            modes every call starts from the initial states.
        results: makes one call and returns its results: "y" `[T, B, D*(P or H)]` (zeros after the
            end of a sequence), "h_n" `[L*D, B, P or H]`, "c_n" `[L*D, B, H]` if there is a c0, and
            if the case trains "grad x", "grad h0" (and "grad c0") and "grad NAME" for every weight.
            When streaming, it steps through all frames, from the initial states.
    """

    run: Callable[[], object]
    results: Callable[[], Mapping[str, Array]]


class Contestant(ABC):
    """An implementation of recurrent layers. Importing its module must not import heavy libraries.

    Attributes:
        name: its name in files and on the command line.
        title: its name in tables and plots.
        kind: "baseline", "backend" or "peer". Only the process of a backend imports rnnjit.
        quantizes: whether it takes cases of int8. Their arrays are float32.
        packages: the distributions that it needs; their import names are the same.
    """

    name: str
    title: str
    kind: Literal["baseline", "backend", "peer"] = "peer"
    quantizes: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()

    def absent(self) -> str:
        """Why it cannot run here, and what to install; "" if it can. Must not import libraries."""
        from rnnjit.runtime.packages import install

        missing = [package for package in self.packages if find_spec(package) is None]
        if not missing:
            return ""
        verb = "is" if len(missing) == 1 else "are"
        return f"{' and '.join(missing)} {verb} not installed: {install('bench', *missing)}"

    def versions(self) -> dict[str, str]:
        """The versions of its packages."""
        return {package: version(package) for package in self.packages}

    def declines(self, case: Case) -> str:
        """Why it does not support such a call; "" if it does."""
        if case.mode == "streaming" and case.bidirectional:
            return "the backward direction needs the end of a sequence first"
        if case.dtype == "int8" and not self.quantizes:
            return "it has no int8 matrices here"
        if case.dtype == "int8" and case.trains:
            return "int8 layers only infer: their results have no gradient"
        return ""

    @abstractmethod
    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """Prepare a case, except for what a first call does (such as compilation).

        It runs in a process of its own, so it may change global settings such as thread counts.
        """

    def setup_seconds(self, case: Case) -> float:
        """The expected seconds of `prepare` and the first call, for progress and limits."""
        return 0.5


def streaming(
    frames: Sequence[ArrayT],
    hx: tuple[ArrayT, ...],
    names: Sequence[str],
    step: Callable[[ArrayT, tuple[ArrayT, ...]], tuple[ArrayT, ...]],
) -> Ready:
    """Prepare a streaming case for a contestant without torch.

    Args:
        frames: each `[1, B, I]`, of the type that `step` takes.
        hx: the initial states, each `[L, B, P or H]`, of the type that `step` takes.
        names: the names of the states, "h" first.
        step: a function from a frame and the states to y `[1, B, P or H]` and the next states.
    """
    states, frame = hx, frames[0]

    def run() -> None:
        nonlocal states
        _, *after = step(frame, states)
        states = tuple(after)

    def results() -> Mapping[str, Array]:
        now, ys = hx, []
        for each in frames:
            y, *after = step(each, now)
            now = tuple(after)
            ys.append(np.array(y))
        last = {f"{name}_n": np.array(state) for name, state in zip(names, now, strict=True)}
        return {"y": np.concatenate(ys), **last}

    return Ready(run, results)
