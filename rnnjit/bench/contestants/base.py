"""What takes part in a benchmark: something that computes an RNN, in a process of its own."""

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
    """A case that can be run.

    Attributes:
        run: one call, as it is timed. When it returns the work is done. Streaming steps over the
            first frame, from the state that the call before left; the other modes begin anew.
        results: one call whose results are read out: "y" `[T, B, D*H]` (zeros behind the end of a
            sequence), "h_n" `[L*D, B, H]`, and where the case trains "grad x", "grad h0" and "grad
            NAME" of every weight. When streaming these are of all frames, step by step, from h0.
    """

    run: Callable[[], object]
    results: Callable[[], Mapping[str, Array]]


class Contestant(ABC):
    """One way to compute an RNN. Importing its module imports nothing heavy.

    Attributes:
        name: in files and on the command line.
        title: as people know it.
        kind: "baseline", "backend" or "peer". Only the process of a backend imports rnnjit.
        packages: distributions that it is made of, which are imported by the same names.
    """

    name: str
    title: str
    kind: ClassVar[Literal["baseline", "backend", "peer"]] = "peer"
    packages: ClassVar[tuple[str, ...]] = ()

    def absent(self) -> str:
        """Why it cannot run here, with what to install; "" if it can. Imports nothing heavy."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if not missing:
            return ""
        verb = "is" if len(missing) == 1 else "are"
        return f"{' and '.join(missing)} {verb} not installed: pip install 'rnnjit[bench]'"

    def versions(self) -> dict[str, str]:
        """The versions of the packages that it is made of."""
        return {package: version(package) for package in self.packages}

    def declines(self, case: Case) -> str:
        """Why it does not offer such a call; "" if it does."""
        if case.mode == "streaming" and case.bidirectional:
            return "the other direction needs the end of a sequence first"
        return ""

    @abstractmethod
    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """Make everything ready but what a first call does by itself.

        It runs in a process that does nothing else, and so may set thread counts for good.
        """

    def setup_seconds(self, case: Case) -> float:
        """About how many seconds `prepare` and the first call take, for the time left."""
        return 0.5


def streaming(
    frames: Sequence[StateT], h0: StateT, step: Callable[[StateT, StateT], tuple[StateT, StateT]]
) -> Ready:
    """A stream of calls of one step, of a contestant without torch.

    Args:
        frames: each `[1, B, I]`, as `step` takes it.
        h0: `[L, B, H]`, as `step` takes it.
        step: gives y `[1, B, H]` and the state to pass to the next step.
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
