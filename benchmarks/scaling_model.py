"""The time of a layer on the Numba backend, from its plan and the machine's peaks.

    t = call + team + packing + rows moved + input's product + T (step + meeting)

A step is its multiply-adds or the weights that its register tiles read, whichever takes longer, and
its activations; `meeting` is the synchronisation of threads after it. The plan gives the rows and
columns of the busiest thread. The machine gives a thread's rate of multiply-adds and the level of
memory that it reads from. The remaining costs and efficiencies, a handful, are the same for every
machine of a kind, and are fitted to measured times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rnnjit.bench.records import Bandwidth, Case, Machine, Peak
from rnnjit.codegen import isa_named
from rnnjit.codegen.plan import Plan, plan
from rnnjit.ir import RNN_TANH
from rnnjit.spec import LayerSpec, Rows

#: Bytes a second from memory, by cores: two channels of DDR5-5200, eight and twelve of DDR5-4800,
#: at 75% of what they could do.
MEMORY = {8: 62e9, 32: 230e9, 96: 345e9}
#: Cores that share a last cache, and its bytes.
_GROUP, _LAST = 8, 32 << 20
_SIZE = 4  # float32
_PACKED_ROWS = 8
#: Exponent of the smooth maximum of two bounds: for two equal ones it is 19% above each.
_SHARPNESS = 4.0


class Costs(NamedTuple):
    """The fitted costs; times in seconds.

    Attributes:
        compute: share of a thread's peak that tiles reach.
        reading: share of a level's bandwidth that tiles reach.
        step: of a step, whatever its size.
        element: of an activation.
        meeting: of synchronising two threads after a step, and of each further thread.
        call: of a call.
        team: of starting a team.
        moving: of a byte of x or y.
        packing: of a byte of weights.
    """

    compute: float = 0.9
    reading: float = 0.7
    step: float = 1e-7
    element: float = 5e-10
    meeting: float = 3e-7
    call: float = 1e-5
    team: float = 2e-6
    moving: float = 1e-10
    packing: float = 2e-10


def cut(case: Case, machine: Machine) -> Plan:
    """The backend's own plan for a case: float32, one layer and direction, dense."""
    layer = LayerSpec(RNN_TANH, case.I, case.H, 1, True)
    rows = Rows(case.T, case.B, case.T * case.B)
    return plan(layer, rows, case.threads, -(-case.H // _lanes(machine)))


def predict(costs: Costs, machine: Machine, case: Case) -> float:
    """Seconds that a call takes, forward in evaluation mode, or forward and backward.

    Args:
        costs: as fitted.
        machine: its peak of float32 on one thread, its bandwidths on one thread and on the case's.
        case: the call.
    """
    T, B, I, H = case.T, case.B, case.I, case.H
    lanes, chosen = _lanes(machine), cut(case, machine)
    peak = next(p.flops for p in machine.peaks if (p.dtype, p.threads) == ("float32", 1))
    alone = [level for level in machine.bandwidths if level.threads == 1]
    active = chosen.threads
    sharing = chosen.parts if chosen.parts > 1 else active
    columns = min(H, ceil(ceil(H / lanes) / chosen.parts) * lanes)
    rows = chosen.slice_rows

    def product(rows: float, inner: float, columns: float, times: float) -> float:
        """Seconds of `times` products of rows by weights `[inner, columns]`."""
        passes = -(-rows // _PACKED_ROWS)
        weights = inner * columns * _SIZE
        computing = 2 * rows * inner * columns / (peak * costs.compute)
        reading = passes * weights / (_holding(weights, alone).rate * costs.reading)
        return times * _either(computing, reading)

    passes = 2 if case.trains else 1
    inner = H if chosen.hoist else H + I
    stepping = product(rows, inner, columns, T)
    outside = product(T * B / sharing, I, H, 1) if chosen.hoist else 0.0
    if case.trains:
        stepping += product(rows, H, columns, T)
        # The gradients of x, W_ih and W_hh: products over all rows, divided evenly.
        outside += 2 * product(T * B / active, I, H, 1) + product(T * B / active, H, H, 1)
    meeting = costs.meeting * T * passes * (chosen.parts - 1)
    # Forward each part packs what it reads; backward, all threads share the packing.
    packing = costs.packing * (I + H) * H * _SIZE * (1 / sharing + (passes - 1) / active)
    moved = T * B * (I + H) * _SIZE * (3 if case.trains else 1)
    return float(
        costs.call * passes
        + (costs.team * passes if active > 1 else 0.0)
        + (0.0 if chosen.direct else packing)
        + costs.moving * moved / _speedup(machine, active)
        + outside
        + stepping
        + meeting
        + T * passes * (costs.step + costs.element * rows * columns)
    )


def fit(times: Mapping[Case, float], machine: Machine) -> Costs:
    """The costs whose predictions are nearest to measured times, by their ratios."""
    start = np.log(np.array(Costs()))
    measured = np.log(list(times.values()))

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        costs = Costs(*np.exp(logs))
        predicted = [predict(costs, machine, case) for case in times]
        # Weak regularisation towards the start, for costs that no time depends on.
        return np.concatenate([np.log(predicted) - measured, 0.02 * (logs - start)])

    return Costs(*np.exp(least_squares(residuals, start, loss="soft_l1", f_scale=0.2).x))


def errors(costs: Costs, machine: Machine, times: Mapping[Case, float]) -> NDArray[np.float64]:
    """The errors of predictions, relative to the measured times."""
    return np.array([predict(costs, machine, case) / taken - 1 for case, taken in times.items()])


def scaled(machine: Machine, cores: int) -> Machine:
    """A machine of `cores` cores like those of a measured one.

    Each core multiplies and reads its own caches as fast as here. Eight cores share a last cache of
    32 MiB, and all share the memory.
    """
    one = {level.level: level for level in machine.bandwidths if level.threads == 1}
    (peak,) = (p.flops for p in machine.peaks if (p.dtype, p.threads) == ("float32", 1))
    peaks, levels = [], []
    for threads in range(1, cores + 1):
        peaks.append(Peak(dtype="float32", threads=threads, flops=peak * threads))
        shared = min(threads, _GROUP)
        for name, level in one.items():
            capacity, rate = level.capacity, level.rate * threads
            if name == "L3":
                capacity = _LAST // shared
            if name == "memory":
                rate = min(rate, MEMORY[cores])
            levels.append(Bandwidth(level=name, threads=threads, capacity=capacity, rate=rate))
    return Machine(
        cpu=f"{cores} cores like those of {machine.cpu}",
        system=machine.system,
        cpus=cores,
        isa=machine.isa,
        peaks=tuple(peaks),
        bandwidths=tuple(levels),
    )


def _either(a: float, b: float) -> float:
    """The larger of two times, or a little more where they are alike."""
    return float((a**_SHARPNESS + b**_SHARPNESS) ** (1 / _SHARPNESS))


def _holding(size: float, levels: Sequence[Bandwidth]) -> Bandwidth:
    """The nearest level that holds `size` bytes, or else memory."""
    holding = [level for level in levels if level.capacity >= size]
    if holding:
        return min(holding, key=lambda level: level.capacity)
    return next(level for level in levels if not level.capacity)


def _speedup(machine: Machine, threads: int) -> float:
    """The speed-up of moving memory on some threads over one."""
    rates = {level.threads: level.rate for level in machine.bandwidths if level.level == "memory"}
    known = max(team for team in rates if team <= threads)
    return rates[known] / rates[1]


def _lanes(machine: Machine) -> int:
    return isa_named(machine.isa, "", (), "").lanes(_SIZE)
