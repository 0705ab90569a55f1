"""The protocol between a benchmark and the process of a contestant: one line of JSON per message.

Every command gets one reply. A command that fails gets `Failed`, and the process continues.
"""

from __future__ import annotations

import msgspec

from rnnjit.bench.records import Case


class Message(msgspec.Struct, frozen=True, tag=True):
    """A command or a reply."""


class Prepare(Message, frozen=True):
    """Prepare a case and call it once. Reply: the seconds of that call, or `Declined`.

    Attributes:
        case: the case.
        arrays: path of the file with its arrays, see `rnnjit.bench.arrays.save`.
    """

    case: Case
    arrays: str


class Results(Message, frozen=True):
    """Write the results of the case to a .npz file at `path`. Reply: no value."""

    path: str


class Calibrate(Message, frozen=True):
    """Find how many calls take `least` seconds. Reply: the number of calls."""

    least: float


class Sample(Message, frozen=True):
    """Time `calls` calls, after one untimed call. Reply: the mean seconds of one call."""

    calls: int


class Memory(Message, frozen=True):
    """Prepare the case again. Reply: the bytes that the process grows by, None if unknown."""


Command = Prepare | Results | Calibrate | Sample | Memory


class Done(Message, frozen=True):
    """The command succeeded; its result, if it has one."""

    value: float | None = None


class Declined(Message, frozen=True):
    """The contestant does not support such a call, for this reason."""

    reason: str


class Failed(Message, frozen=True):
    """The command raised this error."""

    reason: str


Reply = Done | Declined | Failed
