"""Leaves the other threads of a team out for a while when the team is slower than one thread.

A team of OpenMP's ends when each of its threads has entered and left it. Beside busy processes the
system may give a thread a core milliseconds too late, or take it away amid its work: a hundred
times as long as a short call takes. That cannot be known in advance. But it can be measured what
one thread takes alone, and when a call on a team took much longer, those that follow can run on the
calling thread for a multiple of the time that was lost. The multiple grows as long as teams are
slow, so that the time lost stays a small part of all time, and shrinks when they are fast again.

Only time depends on this: results are the same, bit for bit, for any number of threads.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from math import inf
from time import perf_counter_ns

#: Multiples of the time lost for which the others are left out: at first, and at most.
_FIRST, _MOST = 4, 64
#: Nanoseconds for which they are left out at most.
_LONGEST = 1_000_000_000
#: Calls of a fast team after which the multiple is halved.
_FAST = 16
#: Calls by which it is measured what one thread takes; the first of them warms the caches.
_MEASURED = 2
#: A team is slow if it takes more than this many times as long as one thread: less may be chance.
_SLOW = 2
#: Multiply-adds from which on a call is long beside any wait, and too long to be run alone first.
_LONG = 500_000_000


class LateThreads:
    """What one thread takes for calls of one kind, and whether a team is worth trying.

    Several Python threads may use it at the same time; they may overwrite each other's findings,
    which does no harm.

    Args:
        work: multiply-adds of such a call.
    """

    def __init__(self, work: int = 0) -> None:
        self._until, self._alone, self._multiple, self._fast = 0, inf, _FIRST, 0
        self._unmeasured = _MEASURED if work < _LONG else 0

    def alone(self, now: int) -> bool:
        """Whether a call that begins at a time of `perf_counter_ns` should run on one thread."""
        return self._unmeasured > 0 or now < self._until

    def ran_alone(self, took: int) -> None:
        """A call ran on one thread, for so many nanoseconds."""
        self._unmeasured -= 1
        self._alone = min(self._alone, took)

    def ran_on_team(self, took: int) -> None:
        """A call ran on a team, for so many nanoseconds."""
        if took <= _SLOW * self._alone:
            self._fast += 1
            if self._fast >= _FAST:
                self._fast, self._multiple = 0, max(self._multiple // 2, _FIRST)
            return
        pause = min(self._multiple * (took - self._alone), _LONGEST)
        self._until = perf_counter_ns() + int(pause)
        self._fast, self._multiple = 0, min(2 * self._multiple, _MOST)


@lru_cache(maxsize=1024)
def _shared(kind: Hashable, work: int) -> LateThreads:
    return LateThreads(work)


def late_threads(kind: Hashable, work: int) -> LateThreads:
    """What is known of calls of a kind, with about so many multiply-adds.

    Args:
        kind: what else their time depends on: the layer, the batch, the number of threads.
        work: their multiply-adds; those that differ by less than an eighth count as one.
    """
    unit = 1 << max(work.bit_length() - 3, 0)
    return _shared(kind, work // unit * unit)
