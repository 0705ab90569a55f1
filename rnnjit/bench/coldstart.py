"""Cold starts: each sample is a new process, from its start to the end of its first call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

from rnnjit.bench.entry import Entry
from rnnjit.bench.gate import Gate
from rnnjit.bench.plan import FILLED_CACHE
from rnnjit.bench.process import Worker
from rnnjit.codecache import DIRECTORY_VARIABLE


def measure(
    entries: Sequence[Entry],
    folder: Path,
    gate: Gate,
    *,
    starts: int,
    pause: float,
    progress: Callable[[Entry], None],
) -> None:
    """Take the samples of one case, in turns.

    Args:
        entries: who takes part; their samples are added to.
        folder: as `Entry.prepare` takes it.
        gate: the judge.
        starts: samples of each.
        pause: seconds between two samples.
        progress: told of every process.
    """
    filled = bool(entries) and entries[0].case.group == FILLED_CACHE
    with TemporaryDirectory(dir=folder) as caches:
        for start in range(starts + filled):
            for entry in entries:
                if entry.right:
                    cache = Path(caches, entry.contestant.name, "" if filled else str(start))
                    sleep(pause)
                    seconds = _start(entry, folder, gate, cache)
                    if entry.right and (start > 0 or not filled):  # the first one fills the cache
                        entry.calls = 1
                        entry.samples.append(seconds)
                progress(entry)


def _start(entry: Entry, folder: Path, gate: Gate, cache: Path) -> float:
    """Seconds of one start."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = {DIRECTORY_VARIABLE: str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    begun = perf_counter()
    worker = Worker(entry.contestant, entry.case.threads, places)
    try:
        return entry.prepare(worker, folder, gate) - begun
    finally:
        worker.kill()
