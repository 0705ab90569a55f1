"""What measured times allow to conclude: whether another backend than the default is faster.

Another program on the machine only ever adds to a time, and adds more to backends that use several
threads. So the least sample counts, and only if several samples found it (`Timing.settled`). The
default is replaced only by a backend most of whose samples are clearly below the default's least.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rnnjit.runtime.timing import MARGIN, Timing

ENOUGH = 5
"""The fewest rounds that say how much times vary."""


class Decision(NamedTuple):
    """What is concluded from a measurement.

    Attributes:
        order: the measured backends in the order in which `auto` is to take them, the best first;
            None if the measurement does not tell.
        why: the reason, for people.
    """

    order: tuple[str, ...] | None
    why: str


def decide(times: Mapping[str, Timing], default: str) -> Decision:
    """Conclude which backend is to run calls like the measured one.

    Args:
        times: the interleaved times by backend.
        default: the backend that `auto` takes if nothing is known, one of `times`.
    """
    own, fastest = times[default], sorted(times, key=lambda name: times[name].least)
    if own.rounds < ENOUGH:
        return Decision(None, f"{own.rounds} rounds do not show how much times vary: {ENOUGH} do")
    if not own.settled:
        return Decision(None, f"{_spread(default, own)}: tune on a quiet machine")
    faster = [name for name in fastest if times[name].least * MARGIN < own.least]
    clear = [name for name in faster if times[name].p80 * MARGIN < own.least]
    if clear:
        return Decision(_first(clear[0], fastest), f"{clear[0]} is faster than {default}")
    if faster:
        name = faster[0]
        spread = _spread(name, times[name])
        return Decision(None, f"{name} may be faster than {default}, but {spread}")
    return Decision(_first(default, fastest), f"no other is clearly faster than {default}")


def _first(best: str, names: list[str]) -> tuple[str, ...]:
    return (best, *(name for name in names if name != best))


def _spread(name: str, timing: Timing) -> str:
    low, high = timing.least * 1e3, timing.p80 * 1e3
    found = f"times of {name} vary from {low:.3g} to {high:.3g} ms"
    if timing.quiet < timing.rounds:
        found += f", and other programs ran in {timing.rounds - timing.quiet} of {timing.rounds}"
    return found
