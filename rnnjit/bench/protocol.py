"""What a benchmark and the process of a contestant say to each other: a line of JSON each.

Every command gets one reply. A command that fails gets `Failed`, and the process goes on.
"""

from __future__ import annotations

import msgspec

from rnnjit.bench.records import Case


class Message(msgspec.Struct, frozen=True, tag=True):
    """A command or a reply."""


class Prepare(Message, frozen=True):
    """Make a case ready and call it once: the seconds of that call, or `Declined`.

    Attributes:
        case: what to call.
        arrays: path of its numbers, as `rnnjit.bench.arrays.save` writes them.
    """

    case: Case
    arrays: str


class Results(Message, frozen=True):
    """Write the results of the case to a .npz file: nothing to say."""

    path: str


class Calibrate(Message, frozen=True):
    """How many calls last so many seconds."""

    least: float


class Sample(Message, frozen=True):
    """Time so many calls, after one that is not timed: the seconds of one call."""

    calls: int


class Memory(Message, frozen=True):
    """Make the case ready anew: the bytes that the process grows by, None if it is not known."""


Command = Prepare | Results | Calibrate | Sample | Memory


class Done(Message, frozen=True):
    """What was asked for."""

    value: float | None = None


class Declined(Message, frozen=True):
    """Why the contestant does not offer such a call."""

    reason: str


class Failed(Message, frozen=True):
    """What was raised."""

    reason: str


Reply = Done | Declined | Failed
