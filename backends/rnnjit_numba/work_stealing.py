"""Work stealing: the threads of a team take over tasks that others have not begun.

The threads of a team go through the same phases in the same order. Each phase has a task for every
thread, and begins when all tasks of the one before are done. A thread does its own task first, and
then steals those that others have not begun: the operating system may have given a thread's core to
another program for milliseconds, a thousand times as long as a step of a recurrence takes. A thread
that comes late finds its tasks claimed and skips the phases that are over. So the team waits for a
thread only while that thread is in the middle of a task. (Blumofe and Leiserson, "Scheduling
multithreaded computations by work stealing", J. ACM 46(5), 1999, steal to balance the load; here
threads steal because others may not be running.)

A task's work depends on its number alone, and so results do not depend on which thread does it.
"""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.kernel import LINE
from rnnjit_numba import memory
from rnnjit_numba.symbol_table import SymbolTable

#: Polls of the others' progress before a thread steals a task, about a microsecond: by then threads
#: that run have begun, and the data of their tasks are in the caches of their cores.
_SPINS_BEFORE_STEALING = 2000
#: Polls before a waiting thread yields its core: the thread that it waits for may need it.
_SPINS_BEFORE_YIELDING = 2000


def add_next_task(symbols: SymbolTable) -> Any:
    """Add the function by which a thread claims its next task in a phase.

    `next_task(area, own, tasks, phase, finished, last)` is the number of a task that this thread
    has claimed and must do now, or -1 if there is none and the phase is over.

    * `area` is the memory by which threads synchronise (see `ForwardArguments.sync`): a cache line
      with the number of tasks done so far, and then a line for each task: in how many phases it was
      claimed, and whether its thread stole when it last tried, after which it steals at once.
    * `own` is this thread's own task, of `tasks`. No two threads have the same.
    * `phase` counts the phases from 0.
    * `finished` is the task that this thread has just done, or -1 in its first call of the phase.
    * `last` is 1 in the last phase, which does not wait: -1 then means that all tasks are claimed.
    """
    load_acquire, claim = memory.load_acquire(), memory.increment_if_equal()
    atomic_increment, yield_processor = memory.atomic_increment(), memory.yield_processor()
    read_int, write_int = memory.read_int(), memory.write_int()

    def next_task(area: int, own: int, tasks: int, phase: int, finished: int, last: int) -> int:
        if tasks == 1:
            return 0 if finished < 0 else -1
        if finished >= 0 and last == 0:
            atomic_increment(area)
        line = area + LINE * (1 + own)
        if load_acquire(line) == phase and claim(line, phase) != 0:
            return own
        done = (phase + 1) * tasks
        patience = _SPINS_BEFORE_STEALING if read_int(line + 8) == 0 else 0
        spins = patience if last == 0 else 0
        while spins > 0 and load_acquire(area) < done:
            spins -= 1
        if load_acquire(area) >= done:
            return -1
        for i in range(1, tasks):
            other = own + i if own + i < tasks else own + i - tasks
            theirs = area + LINE * (1 + other)
            spins = patience if last != 0 else 0
            while spins > 0 and load_acquire(theirs) == phase:
                spins -= 1
            if load_acquire(theirs) == phase and claim(theirs, phase) != 0:
                write_int(line + 8, 1)
                return other
        write_int(line + 8, 0)
        spins = 0
        while last == 0 and load_acquire(area) < done:
            spins += 1
            if spins == _SPINS_BEFORE_YIELDING:
                spins = 0
                yield_processor()
        return -1

    return symbols.add(next_task)
