"""What a benchmark and the process of a contestant say to each other: a line of JSON each.

Every command gets one reply. A command that fails gets `Failed`, and the process goes on.
"""

from __future__ import annotations

import msgspec

from rnnjit.bench.records import Case


class Message(msgspec.Struct, frozen=True, tag=True):
    """A command or a reply."""


class Prepare(Message, frozen=True):
    """Make a case ready and call it once: `Prepared`, `Declined`.

    Attributes:
        case: what to call.
        arrays: path of its numbers, as `rnnjit.bench.arrays.save` writes them.
    """

    case: Case
    arrays: str


class Results(Message, frozen=True):
    """Write the results of the case to a .npz file: `Done`."""

    path: str


class Calibrate(Message, frozen=True):
    """How many calls last so many seconds: `Calls`."""

    least: float


class Sample(Message, frozen=True):
    """Time so many calls, after one that is not timed: `Seconds`, of one call."""

    calls: int


class Memory(Message, frozen=True):
    """Make the case ready anew and see by how much the process grows: `Grown`."""


Command = Prepare | Results | Calibrate | Sample | Memory


class Prepared(Message, frozen=True):
    """Seconds that the first call took."""

    first_call: float


class Declined(Message, frozen=True):
    """Why the contestant does not offer such a call."""

    reason: str


class Failed(Message, frozen=True):
    """What was raised."""

    reason: str


class Done(Message, frozen=True):
    """Nothing to say."""


class Calls(Message, frozen=True):
    """A number of calls."""

    count: int


class Seconds(Message, frozen=True):
    """A time."""

    seconds: float


class Grown(Message, frozen=True):
    """Bytes, or None where the system does not tell."""

    amount: int | None


Reply = Prepared | Declined | Failed | Done | Calls | Seconds | Grown
