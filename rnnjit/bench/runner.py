"""Runs cases on contestants: judged first, then timed in turns, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from types import TracebackType

from rnnjit.bench import arrays, coldstart, protocol
from rnnjit.bench.contestant import Contestant
from rnnjit.bench.entry import ARRAYS, Entry
from rnnjit.bench.gate import Gate
from rnnjit.bench.plan import Plan
from rnnjit.bench.process import Worker
from rnnjit.bench.records import Case, Measurement

#: Told what is going on, and how many of the seconds that `Plan` foresaw are over with it.
Progress = Callable[[str, float], None]
_FEWEST_ROUNDS = 3


class Runner:
    """Measures cases one after the other; processes live on while the number of threads stays.

    A context manager: at its end all processes are over.

    Args:
        contestants: who takes part.
        plan: how it is measured.
        progress: told of every step.

    Attributes:
        measurements: of all cases so far; of a case that was interrupted, what its rounds gave.
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
        if kind is not None:  # who is at work would not hear that it is over
            for worker in self._workers.values():
                worker.kill()
        self._end_workers()
        self._temporary.cleanup()

    def measure(self, cases: Iterable[Case]) -> None:
        """Measure cases, and add what comes out to `measurements`."""
        for case in cases:
            entries = [Entry(each, case, self._plan.patience) for each in self._contestants]
            for entry in entries:
                if reason := self._plan.leaves_out(entry.contestant, case):
                    entry.decline(reason)
            try:
                self._measure(case, entries)
            finally:
                finished = [entry for entry in entries if entry.samples or not entry.right]
                self.measurements += [entry.measurement() for entry in finished]

    def _measure(self, case: Case, entries: list[Entry]) -> None:
        drawn = arrays.draw(case)
        arrays.save(self._folder / ARRAYS, drawn)
        gate = Gate(case, drawn)
        if case.mode != "cold start":
            self._prepare(entries, gate)
            self._sample([entry for entry in entries if entry.right])
            return

        def progress(entry: Entry) -> None:
            expected = self._plan.preparing(entry.contestant, case) / self._plan.starts
            self._progress(f"{entry.contestant.name} starts", expected)

        plan = self._plan
        coldstart.measure(
            entries, self._folder, gate, starts=plan.starts, pause=plan.pause, progress=progress
        )

    def _prepare(self, entries: Sequence[Entry], gate: Gate) -> None:
        """Have every contestant make its first call, and see how many calls make a sample."""
        for entry in entries:
            if not entry.right:
                continue
            worker = self._worker(entry)
            entry.prepare(worker, self._folder, gate)
            command = protocol.Calibrate(self._plan.sample)
            calls = entry.ask(worker, command, protocol.Calls)
            entry.calls = 0 if calls is None else calls.count
            expected = self._plan.preparing(entry.contestant, entry.case)
            self._progress(f"{entry.contestant.name} is ready", expected)

    def _sample(self, entries: Sequence[Entry]) -> None:
        """Take the samples of a case, in turns, then see how much memory a call takes."""
        plan = self._plan
        for at in range(plan.rounds):
            for entry in entries:
                if at >= _FEWEST_ROUNDS and sum(entry.samples) * entry.calls > plan.most:
                    continue
                sleep(plan.pause)
                worker = self._workers[entry.contestant.name]
                took = entry.ask(worker, protocol.Sample(entry.calls), protocol.Seconds)
                entry.samples += [] if took is None else [took.seconds]
            self._progress(f"round {at + 1} of {plan.rounds}", plan.round(len(entries)))
        for entry in entries if plan.memory else ():
            worker = self._workers[entry.contestant.name]
            grown = entry.ask(worker, protocol.Memory(), protocol.Grown)
            entry.memory = None if grown is None else grown.amount

    def _worker(self, entry: Entry) -> Worker:
        """The contestant's process, a new one if it died or had another number of threads."""
        if entry.case.threads != self._threads:
            self._end_workers()
            self._threads = entry.case.threads
        name = entry.contestant.name
        if name not in self._workers or not self._workers[name].alive:
            self._workers[name] = Worker(entry.contestant, self._threads)
        return self._workers[name]

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
