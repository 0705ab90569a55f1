"""What bounds a call on a machine: the roofline (Williams, Waterman, Patterson, CACM 2009).

No implementation can be faster than the machine's multiply-adds, or faster than its reads of the
data: W_hh at every step, from the nearest level of memory that holds it, and the rows of x and y
once. The one that takes longest bounds the call, if the call comes near this limit. If it does not,
the time is spent on overhead: in each step (kernel launches, thread synchronisation), or once per
call, before and after the steps (Python).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rnnjit.bench.arrays import itemsize, lengths_of, storage
from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Bandwidth, Case, Machine

#: The share of the machine's limit from which on the machine bounds a call.
_NEAR = 0.4
#: The share of a call's time from which on the overhead per call bounds it.
_MOSTLY = 0.5


class Work(NamedTuple):
    """The least work of a call.

    Attributes:
        flops: floating-point operations, two for each multiply-add.
        weights: bytes of the recurrent weights, the projection's too, which every step reads.
        steps: how often the weights are read: steps times passes times layers.
        rows: bytes of the rows of inputs, outputs and gradients, each read or written once.
    """

    flops: float
    weights: float
    steps: float
    rows: float


class Bound(NamedTuple):
    """How near a call comes to the machine's limit, and what bounds it.

    Attributes:
        share: the limit divided by the time of the call; 1 is as fast as possible.
        name: "compute", a level of memory, "steps" or "Python".
        limit: seconds that the call would take at the machine's limit.
    """

    share: float
    name: str
    limit: float


def work(case: Case) -> Work:
    """The least work of a call; a backward pass does twice the work of a forward pass."""
    size, directions = itemsize(storage(case.dtype)), case.directions
    columns, outputs = len(kind_of(case).gates) * case.H, case.outputs
    projection = case.proj_size * case.H
    # The work in forward passes, and the number of passes over the steps.
    passes, sweeps = (2, 1) if case.mode == "backward" else (3, 2) if case.trains else (1, 1)
    rows = float(lengths_of(case).sum())
    flops = moved = 0.0
    for layer in range(case.layers):
        features = directions * outputs if layer else case.I
        flops += 2.0 * rows * directions * (columns * (features + outputs) + projection)
        moved += rows * (features + directions * outputs) * size
    weights = float(directions * (columns * outputs + projection) * itemsize(case.dtype))
    return Work(flops * passes, weights, case.T * case.layers * sweeps, moved * passes)


def limits(case: Case, machine: Machine) -> dict[str, float]:
    """The least seconds of a call for each resource: "compute", and levels of memory.

    Empty if the machine was not measured for the case's dtype and threads.
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


def reading(case: Case, machine: Machine) -> float | None:
    """The least seconds that reading the recurrent weights at every step takes.

    None if the machine was not measured for the case's threads.
    """
    needed, levels = work(case), [b for b in machine.bandwidths if b.threads == case.threads]
    if not levels:
        return None
    return needed.weights * needed.steps / _holding(needed.weights / case.threads, levels).rate


def bound(
    case: Case, seconds: float, machine: Machine, overhead: float | None = None
) -> Bound | None:
    """What bounds a call, or None if the machine was not measured for it.

    Args:
        case: the call.
        seconds: the time of the call.
        machine: the machine.
        overhead: overhead per call of the same contestant in seconds, see `overheads`; None if
            unknown.
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
    """The overhead per call of one contestant in seconds: min(time - limit) over its cases.

    It is an upper bound, which the smallest cases determine. The keys are those of `overhead_key`:
    mode, dtype and threads.
    """
    found: dict[tuple[str, str, int], float] = {}
    for case, seconds in times.items():
        least = max(limits(case, machine).values(), default=0.0)
        key = overhead_key(case)
        found[key] = min(found.get(key, seconds), max(0.0, seconds - least))
    return found


def overhead_key(case: Case) -> tuple[str, str, int]:
    """The key of a case in `overheads`."""
    return case.mode, case.dtype, case.threads


def _holding(size: float, levels: Sequence[Bandwidth]) -> Bandwidth:
    """The nearest level that holds `size` bytes per thread, or else the farthest."""
    holding = [level for level in levels if level.capacity >= size]
    if holding:
        return min(holding, key=lambda level: level.capacity)
    return next((level for level in levels if not level.capacity), levels[-1])


def share_of_peak(case: Case, seconds: float, machine: Machine) -> float | None:
    """The share of the machine's peak rate that a call reaches; None if it was not measured."""
    found = limits(case, machine)
    return found["compute"] / seconds if found else None
