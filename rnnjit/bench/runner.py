"""Runs cases on contestants, each in its own process: first checked, then timed, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from types import TracebackType

from rnnjit.bench import arrays
from rnnjit.bench.cases import FILLED_CACHE
from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.correctness_gate import CorrectnessGate
from rnnjit.bench.plan import Plan
from rnnjit.bench.process import Worker
from rnnjit.bench.quantized_gate import QuantizedGate
from rnnjit.bench.records import Case, Measurement
from rnnjit.bench.trial import ARRAYS, Gate, Trial
from rnnjit.runtime.object_cache import DIRECTORY_VARIABLE

#: Called with the step that has finished, and the seconds that `Plan` expected for it.
Progress = Callable[[str, float], None]
_FEWEST_ROUNDS = 3


class Runner:
    """Measures cases one after the other; reuses the processes while the thread count is the same.

    A context manager, which ends all processes on exit.

    Args:
        contestants: the contestants.
        plan: how to measure.
        progress: called after every step.

    Attributes:
        measurements: those of all cases so far; an interrupted case has those of its finished
            rounds.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        plan: Plan,
        progress: Progress = lambda what, seconds: None,
    ) -> None:
        self.measurements: list[Measurement] = []
        self._contestants, self._plan, self._progress = contestants, plan, progress
        self._workers: dict[str, Worker] = {}
        self._threads = 0
        self._temporary = TemporaryDirectory(prefix="rnnjit-bench-")
        self._folder = Path(self._temporary.name)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, where: TracebackType | None
    ) -> None:
        if kind is not None:  # a busy process would not notice that its input ended
            for worker in self._workers.values():
                worker.kill()
        self._end_workers()
        self._temporary.cleanup()

    def measure(self, cases: Iterable[Case]) -> None:
        """Measure cases, and append the results to `measurements`."""
        for case in cases:
            trials = [Trial(each, case, self._plan.timeout) for each in self._contestants]
            for trial in trials:
                if reason := self._plan.leaves_out(trial.contestant, case):
                    trial.decline(reason)
            try:
                drawn = arrays.draw(case)
                arrays.save(self._folder / ARRAYS, drawn)
                gate = gate_of(case, drawn)
                if case.cold:
                    self._start(trials, gate)
                else:
                    self._prepare(trials, gate)
                    self._sample([trial for trial in trials if trial.right])
            finally:
                finished = [trial for trial in trials if trial.samples or not trial.right]
                self.measurements += [trial.measurement() for trial in finished]

    def _prepare(self, trials: Sequence[Trial], gate: Gate) -> None:
        """Make the first call of every contestant, and find the number of calls in a sample."""
        for trial in trials:
            if not trial.right:
                continue
            worker = self._worker(trial)
            trial.prepare(worker, self._folder, gate)
            trial.calibrate(worker, self._plan.sample)
            expected = self._plan.preparing(trial.contestant, trial.case)
            self._progress(f"{trial.contestant.name} is ready", expected)

    def _sample(self, trials: Sequence[Trial]) -> None:
        """Take the interleaved samples of a case, then measure the memory of a call."""
        plan = self._plan
        for at in range(plan.rounds):
            for trial in trials:
                if at >= _FEWEST_ROUNDS and sum(trial.samples) * trial.calls > plan.most:
                    continue
                sleep(plan.pause)
                trial.sample(self._workers[trial.contestant.name])
            self._progress(f"round {at + 1} of {plan.rounds}", plan.round(len(trials)))
        for trial in trials if plan.memory else ():
            trial.measure_memory(self._workers[trial.contestant.name])

    def _start(self, trials: Sequence[Trial], gate: Gate) -> None:
        """Take the samples of a cold start, each from a process's start to its first result."""
        plan = self._plan
        filled = any(trial.case.group == FILLED_CACHE for trial in trials)
        with TemporaryDirectory(dir=self._folder) as caches:
            for start in range(plan.starts + filled):
                for trial in trials:
                    name = trial.contestant.name
                    if trial.right:
                        sleep(plan.pause)
                        cache = Path(caches, name, "" if filled else str(start))
                        seconds = start_once(trial, self._folder, gate, cache)
                        if trial.right and (start > 0 or not filled):  # the first fills the cache
                            trial.calls = 1
                            trial.samples.append(seconds)
                    expected = plan.preparing(trial.contestant, trial.case) / plan.starts
                    self._progress(f"{name} starts", expected)

    def _worker(self, trial: Trial) -> Worker:
        """The contestant's process; a new one if it died or had another number of threads."""
        if trial.case.threads != self._threads:
            self._end_workers()
            self._threads = trial.case.threads
        name = trial.contestant.name
        if name not in self._workers or not self._workers[name].alive:
            self._workers[name] = Worker(trial.contestant, self._threads)
        return self._workers[name]

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


def gate_of(case: Case, drawn: arrays.Arrays) -> Gate:
    """What judges the results of a case."""
    return (QuantizedGate if case.dtype == "int8" else CorrectnessGate)(case, drawn)


def start_once(trial: Trial, folder: Path, gate: Gate, cache: Path) -> float:
    """Measure the seconds from the start of a new process to the end of its first call.

    Args:
        trial: the trial.
        folder: as in `Trial.prepare`.
        gate: checks the results.
        cache: a directory for compiled code, created if it does not exist.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = {DIRECTORY_VARIABLE: str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    begun = perf_counter()
    worker = Worker(trial.contestant, trial.case.threads, places)
    try:
        return trial.prepare(worker, folder, gate) - begun
    finally:
        worker.kill()
