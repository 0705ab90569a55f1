"""Threads that share work, and never wait for one that has no processor to begin its share.

The threads of a team go through the same phases in the same order. Each phase has a share for every
thread, and begins when all shares of the one before are done. A thread does its own share first.
Where another has not begun its own by then, it does that one's too: the operating system may have
given that thread's core to another program for milliseconds, a thousand times as long as a step of
a recurrence takes. A thread that comes late finds its shares taken and goes through the phases that
are over, until it gets to the one that the others are at. So a thread is waited for only while it
is in the middle of a share.

What a share is depends on its number alone, and so results do not depend on who does it.
"""

from __future__ import annotations

from typing import Any

from rnnjit_numba import memory
from rnnjit_numba.arguments import LINE
from rnnjit_numba.units import Units

#: Looks at what others have done before a thread takes one of their shares, about a microsecond:
#: they have begun by then if they run at all, and their shares' data are in the caches of their
#: cores.
_PATIENCE = 2000
#: Looks before a thread that waits gives way: it may be waiting for one that wants its core.
_LOOKS = 2000


def add_next_share(units: Units) -> Any:
    """The function by which a thread finds what to do next in a phase.

    `next_share(area, own, shares, phase, finished, last)` is the number of a share that this
    thread must do now, or -1 if there is none and the phase is over.

    * `area` is where the threads meet (see `ForwardArguments.sync`): a line with the number of
      shares done so far, and then a line for each share: in how many phases it was taken, and
      whether its thread is in a hurry, that is, has found others absent.
    * `own` is the share that is this thread's own, of `shares`. No two threads have the same.
    * `phase` counts the phases from 0.
    * `finished` is the share that it has just done, -1 when it begins with the phase.
    * `last` is 1 in a phase that no other follows: then -1 means that all shares were taken.
    """
    peek, take = memory.peek(), memory.take()
    count_up, give_way = memory.count_up(), memory.give_way()
    read_int, write_int = memory.read_int(), memory.write_int()

    def next_share(area: int, own: int, shares: int, phase: int, finished: int, last: int) -> int:
        if shares == 1:
            return 0 if finished < 0 else -1
        if finished >= 0 and last == 0:
            count_up(area)
        line = area + LINE * (1 + own)
        if peek(line) == phase and take(line, phase) != 0:
            return own
        done = (phase + 1) * shares
        patience = _PATIENCE if read_int(line + 8) == 0 else 0
        looks = patience if last == 0 else 0
        while looks > 0 and peek(area) < done:
            looks -= 1
        if peek(area) >= done:
            return -1
        for i in range(1, shares):
            other = own + i if own + i < shares else own + i - shares
            theirs = area + LINE * (1 + other)
            looks = patience if last != 0 else 0
            while looks > 0 and peek(theirs) == phase:
                looks -= 1
            if peek(theirs) == phase and take(theirs, phase) != 0:
                write_int(line + 8, 1)
                return other
        write_int(line + 8, 0)
        looks = 0
        while last == 0 and peek(area) < done:
            looks += 1
            if looks == _LOOKS:
                looks = 0
                give_way()
        return -1

    return units.add(next_share)
