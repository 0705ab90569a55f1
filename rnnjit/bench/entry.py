"""One contestant in one case, while it is being measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from msgspec import structs

from rnnjit.bench import arrays, protocol
from rnnjit.bench.contestant import Contestant
from rnnjit.bench.gate import Gate
from rnnjit.bench.process import Refusal, Worker, WorkerError
from rnnjit.bench.records import Case, Measurement, Verdict

ReplyT = TypeVar("ReplyT", bound=protocol.Message)
#: The file in which an entry's process finds the numbers of the case.
ARRAYS = "arrays.npz"


@dataclass
class Entry:
    """One contestant in one case: all that is said to it is said here.

    Attributes:
        contestant: who.
        case: what.
        patience: seconds that it may take for an answer.
        verdict, reason, error, eager_error, first_call, memory: as in `Measurement`.
        calls: of a sample.
        samples: seconds of one call.
    """

    contestant: Contestant
    case: Case
    patience: float
    verdict: Verdict = "right"
    reason: str = ""
    error: float | None = None
    eager_error: float | None = None
    first_call: float | None = None
    memory: int | None = None
    calls: int = 0
    samples: list[float] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether there is nothing against it so far."""
        return self.verdict == "right"

    def decline(self, reason: str) -> None:
        """It takes no part in the case."""
        self._lose("declined", reason)

    def ask(self, worker: Worker, command: protocol.Command, reply: type[ReplyT]) -> ReplyT | None:
        """The reply of its process, or None: then the verdict says why."""
        if not self.right:
            return None
        try:
            return worker.ask(command, reply, self.patience)
        except Refusal as error:
            self.decline(str(error))
        except WorkerError as error:
            self._lose("failed", error)
        return None

    def prepare(self, worker: Worker, folder: Path, gate: Gate) -> float:
        """Have it make its first call, and judge it: a time only for what is right.

        Args:
            worker: its process.
            folder: holds the numbers of the case as `ARRAYS`; results go there, too.
            gate: the judge.

        Returns:
            `perf_counter()` at the end of the first call.
        """
        command = protocol.Prepare(self.case, str(folder / ARRAYS))
        prepared = self.ask(worker, command, protocol.Prepared)
        moment = perf_counter()
        path = folder / "results.npz"
        if prepared and self.ask(worker, protocol.Results(str(path)), protocol.Done):
            self.first_call = prepared.first_call
            try:
                found = gate.judge(arrays.load_results(path))
            except (OSError, ValueError, BadZipFile) as error:
                self._lose("failed", error)
            else:
                self.error, self.eager_error = found.error, gate.eager_error
                if found.wrong:
                    self._lose("wrong", found.wrong)
        return moment

    def measurement(self) -> Measurement:
        """What came out; times only of what is right."""
        found = Measurement(
            contestant=self.contestant.name,
            case=self.case,
            verdict=self.verdict,
            reason=self.reason,
            error=self.error,
            eager_error=self.eager_error,
        )
        if not self.right:
            return found
        p20, p50, p80 = np.percentile(self.samples, [20, 50, 80]).tolist()
        return structs.replace(
            found,
            p20=p20,
            p50=p50,
            p80=p80,
            samples=len(self.samples),
            calls=self.calls,
            first_call=self.first_call,
            memory=self.memory,
        )

    def _lose(self, verdict: Verdict, reason: object) -> None:
        self.verdict, self.reason = verdict, " ".join(str(reason).split())
