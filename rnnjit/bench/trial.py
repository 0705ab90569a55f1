"""A trial: the measurement of one contestant in one case."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from zipfile import BadZipFile

from msgspec import structs

from rnnjit.bench import arrays, protocol
from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.correctness_gate import CorrectnessGate
from rnnjit.bench.process import Refusal, Worker, WorkerError
from rnnjit.bench.quantized_gate import QuantizedGate
from rnnjit.bench.records import Case, Measurement, Verdict
from rnnjit.runtime.timing import Timing

Gate = CorrectnessGate | QuantizedGate
#: The file from which the process of a contestant reads the arrays of the case.
ARRAYS = "arrays.npz"


@dataclass
class Trial:
    """One contestant in one case; it sends all commands to the contestant's process.

    Attributes:
        contestant: the contestant.
        case: the case.
        timeout: most seconds for a reply.
        result: the measurement so far, without times.
        calls: the number of calls in a sample.
        samples: for each sample, the mean seconds of a call.
    """

    contestant: Contestant
    case: Case
    timeout: float
    calls: int = 0
    samples: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.result = Measurement(contestant=self.contestant.name, case=self.case)

    @property
    def right(self) -> bool:
        """Whether the verdict is "right" so far."""
        return self.result.verdict == "right"

    def decline(self, reason: str) -> None:
        """Record that the contestant declines the case."""
        self._lose("declined", reason)

    def ask(self, worker: Worker, command: protocol.Command) -> float | None:
        """Send a command and return the reply; None without one, and then the verdict says why."""
        if not self.right:
            return None
        try:
            return worker.ask(command, self.timeout)
        except Refusal as error:
            self.decline(str(error))
        except WorkerError as error:
            self._lose("failed", error)
        return None

    def prepare(self, worker: Worker, folder: Path, gate: Gate) -> float:
        """Make the first call, and check its results.

        Args:
            worker: the process.
            folder: the directory with the file `ARRAYS`; results are written there, too.
            gate: checks the results.

        Returns:
            `perf_counter()` at the end of the first call.
        """
        first_call = self.ask(worker, protocol.Prepare(self.case, str(folder / ARRAYS)))
        moment = perf_counter()
        path = folder / "results.npz"
        self.ask(worker, protocol.Results(str(path)))
        if not self.right:
            return moment
        try:
            found = gate.judge(arrays.load_results(path))
        except (OSError, ValueError, BadZipFile) as error:
            self._lose("failed", error)
        else:
            self._note(first_call=first_call, error=found.error, eager_error=gate.eager_error)
            if found.wrong:
                self._lose("wrong", found.wrong)
        return moment

    def calibrate(self, worker: Worker, least: float) -> None:
        """Find the number of calls in a sample of `least` seconds."""
        self.calls = int(self.ask(worker, protocol.Calibrate(least)) or 0)

    def sample(self, worker: Worker) -> None:
        """Take a sample."""
        taken = self.ask(worker, protocol.Sample(self.calls))
        self.samples += [] if taken is None else [taken]

    def measure_memory(self, worker: Worker) -> None:
        """Measure the memory growth of a call."""
        grown = self.ask(worker, protocol.Memory())
        self._note(memory=None if grown is None else int(grown))

    def measurement(self) -> Measurement:
        """The result, with times only if it is right."""
        if not self.right:
            return structs.replace(self.result, first_call=None, memory=None)
        times = Timing.of(self.samples, self.calls)
        return structs.replace(
            self.result,
            p20=times.p20,
            p50=times.median,
            p80=times.p80,
            samples=times.rounds,
            calls=times.calls,
        )

    def _lose(self, verdict: Verdict, reason: object) -> None:
        self._note(verdict=verdict, reason=" ".join(str(reason).split()))

    def _note(self, **fields: object) -> None:
        self.result = structs.replace(self.result, **fields)
