"""What bounds a call on a machine: the roofline (Williams, Waterman, Patterson, CACM 2009).

No implementation can do a call faster than the machine multiplies and adds, nor faster than it
reads what has to be read: W_hh at every step, from the nearest level of memory that holds it, and
the rows of x and y once. Which of these takes longest bounds the call, as far as the call comes
near. Where it does not, time goes into the steps themselves (starting kernels, meeting threads), or
into the call as a whole, before and behind its steps: Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rnnjit.bench.arrays import lengths_of
from rnnjit.bench.records import Bandwidth, Case, Machine

#: From this share of what the machine can do on, the machine is what bounds a call.
_NEAR = 0.4
#: The share of a call's time from which on the call as a whole bounds it.
_MOSTLY = 0.5


class Work(NamedTuple):
    """What a call has to do at least.

    Attributes:
        flops: operations, two for each multiply-add.
        weights: bytes of the recurrent weights, which are read at every step.
        steps: how often they are read: steps, passes and layers.
        rows: bytes of the rows of inputs, outputs and gradients, each read or written once.
    """

    flops: float
    weights: float
    steps: float
    rows: float


class Bound(NamedTuple):
    """How near a call comes to what the machine can do, and what holds it there.

    Attributes:
        share: of the machine's limit: 1 is as fast as can be.
        name: "compute", a level of memory, "steps" or "Python".
        limit: seconds that the call would take at the machine's limit.
    """

    share: float
    name: str
    limit: float


def work(case: Case) -> Work:
    """What a call has to do at least; a backward pass does twice what a forward pass does."""
    size, directions, H = np.dtype(case.dtype).itemsize, case.directions, case.H
    # Forward passes that have as many operations, and passes over the steps.
    passes, sweeps = (2, 1) if case.mode == "backward" else (3, 2) if case.trains else (1, 1)
    rows = float(lengths_of(case).sum())
    flops = moved = 0.0
    for layer in range(case.layers):
        features = directions * H if layer else case.I
        flops += 2.0 * rows * directions * H * (features + H)
        moved += rows * (features + directions * H) * size
    weights = float(directions * H * H * size)
    return Work(flops * passes, weights, case.T * case.layers * sweeps, moved * passes)


def limits(case: Case, machine: Machine) -> dict[str, float]:
    """Seconds that a call takes at least, by what it needs: "compute", and levels of memory.

    Empty where the machine was not measured for the case's dtype and threads.
    """
    needed = work(case)
    peak = next(
        (p for p in machine.peaks if (p.dtype, p.threads) == (case.dtype, case.threads)), None
    )
    levels = [b for b in machine.bandwidths if b.threads == case.threads]
    if peak is None or not levels:
        return {}
    found = {"compute": needed.flops / peak.flops}
    for size, times in ((needed.weights, needed.steps), (needed.rows, 1.0)):
        level = _holding(size / case.threads, levels)
        found[level.level] = found.get(level.level, 0.0) + size * times / level.rate
    return found


def bound(
    case: Case, seconds: float, machine: Machine, overhead: float | None = None
) -> Bound | None:
    """What bounds a call that took some time, or None if the machine was not measured for it.

    Args:
        case: the call.
        seconds: that it took.
        machine: where.
        overhead: seconds that the same contestant takes for a call with next to nothing to do, see
            `overheads`; unknown if None.
    """
    found = limits(case, machine)
    if not found:
        return None
    name = max(found, key=found.__getitem__)
    limit = found[name]
    share = limit / seconds
    if share < _NEAR:
        name = "Python" if overhead is not None and overhead > _MOSTLY * seconds else "steps"
    return Bound(share, name, limit)


def overheads(times: Mapping[Case, float], machine: Machine) -> dict[tuple[str, str, int], float]:
    """What calls cost beside their work: the least of (time - limit), by mode, dtype and threads.

    It is an upper bound, from the calls of one contestant that come nearest to doing nothing.
    """
    found: dict[tuple[str, str, int], float] = {}
    for case, seconds in times.items():
        least = max(limits(case, machine).values(), default=0.0)
        key = overhead_key(case)
        found[key] = min(found.get(key, seconds), max(0.0, seconds - least))
    return found


def overhead_key(case: Case) -> tuple[str, str, int]:
    """Where `overheads` has the overhead of a case."""
    return case.mode, case.dtype, case.threads


def _holding(size: float, levels: Sequence[Bandwidth]) -> Bandwidth:
    """The nearest level that holds `size` bytes of each thread, or else the farthest."""
    holding = [level for level in levels if level.capacity >= size]
    if holding:
        return min(holding, key=lambda level: level.capacity)
    return next((level for level in levels if not level.capacity), levels[-1])


def share_of_peak(case: Case, seconds: float, machine: Machine) -> float | None:
    """How much of the machine's multiply-adds a call does; None if it was not measured for it."""
    found = limits(case, machine)
    return found["compute"] / seconds if found else None
