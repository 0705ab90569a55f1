"""What takes part in a benchmark: something that computes an RNN, in a process of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjit.bench.records import Case

Array = NDArray[np.floating]

#: Steps of which the results are judged when streaming: a state that is not carried on shows.
FRAMES = 8


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


class Ready(NamedTuple):
    """A case that can be run.

    Attributes:
        run: one call, as it is timed. When it returns the work is done. Streaming steps over the
            first frame, from the state that the call before left; the other modes begin anew.
        results: one call whose results are read out: "y" `[T, B, D*H]` (zeros behind the end of a
            sequence), "h_n" `[L*D, B, H]`, and in training "grad x", "grad h0" and "grad NAME" of
            every weight. When streaming these are of all frames, step by step, from h0.
    """

    run: Callable[[], object]
    results: Callable[[], Mapping[str, Array]]


class Contestant(ABC):
    """One way to compute an RNN. Importing its module imports nothing heavy.

    Attributes:
        name: in files and on the command line.
        title: as people know it.
        kind: "baseline", "backend" or "peer". Only the process of a backend imports rnnjit.
    """

    name: str
    title: str
    kind: ClassVar[Literal["baseline", "backend", "peer"]] = "peer"

    @abstractmethod
    def absent(self) -> str:
        """Why it cannot run here, with what to install; "" if it can. Imports nothing heavy."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """The versions of the packages that it is made of."""

    @abstractmethod
    def declines(self, case: Case) -> str:
        """Why it does not offer such a call; "" if it does."""

    @abstractmethod
    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """Make everything ready but what a first call does by itself.

        It runs in a process that does nothing else, and so may set thread counts for good.
        """

    def patience(self, case: Case) -> float:
        """About how many seconds `prepare` and the first call take, for the time left."""
        return 0.5
