"""The interface of a contestant: an implementation of RNNs that runs in its own process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

from rnnjit.bench.arrays import Array, Arrays
from rnnjit.bench.records import Case

StateT = TypeVar("StateT")


class Ready(NamedTuple):
    """A prepared case.

    Attributes:
        run: makes one call, as it is timed, and returns when the work is done. When streaming, the
            call is one step on the first frame, from the state of the previous call; in the other
            modes every call starts from h0.
        results: makes one call and returns its results: "y" `[T, B, D*H]` (zeros after the end of a
            sequence), "h_n" `[L*D, B, H]`, and if the case trains "grad x", "grad h0" and "grad
            NAME" for every weight. When streaming, it steps through all frames, from h0.
    """

    run: Callable[[], object]
    results: Callable[[], Mapping[str, Array]]


class Contestant(ABC):
    """An implementation of RNNs. Importing its module must not import heavy libraries.

    Attributes:
        name: its name in files and on the command line.
        title: its name in tables and plots.
        kind: "baseline", "backend" or "peer". Only the process of a backend imports rnnjit.
        packages: the distributions that it needs; their import names are the same.
    """

    name: str
    title: str
    kind: ClassVar[Literal["baseline", "backend", "peer"]] = "peer"
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
    frames: Sequence[StateT], h0: StateT, step: Callable[[StateT, StateT], tuple[StateT, StateT]]
) -> Ready:
    """Prepare a streaming case for a contestant without torch.

    Args:
        frames: each `[1, B, I]`, of the type that `step` takes.
        h0: `[L, B, H]`, of the type that `step` takes.
        step: a function from a frame and a state to y `[1, B, H]` and the next state.
    """
    state, frame = h0, frames[0]

    def run() -> None:
        nonlocal state
        _, state = step(frame, state)

    def results() -> Mapping[str, Array]:
        now, ys = h0, []
        for each in frames:
            y, now = step(each, now)
            ys.append(np.array(y))
        return {"y": np.concatenate(ys), "h_n": np.array(now)}

    return Ready(run, results)
