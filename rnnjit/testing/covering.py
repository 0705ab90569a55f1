"""Few rows in which every pair of facts is met: a covering array of strength two.

Most faults need one fact, or two together, to show. A product of all facts tries each pair many
times; a covering array has each at least once. The method is the greedy one of Cohen, Dalal,
Fredman and Patton, "The AETG system", IEEE TSE 23(7), 1997, without its random choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

#: An axis and one of its values.
Fact = tuple[str, str]


def covering(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Rows that give each axis a value, such that any two values of two axes share a row.

    Args:
        axes: by name, the values that each may have; any two go together.

    Returns:
        The same rows each time, for the same axes.

    Example:
        >>> covering({"bias": ["yes", "no"], "dtype": ["f32", "f64"]})[:2]
        [{'bias': 'yes', 'dtype': 'f32'}, {'bias': 'no', 'dtype': 'f64'}]
    """
    met: Counter[frozenset[Fact]] = Counter()
    missing = {
        frozenset(((a, x), (b, y)))
        for a, b in combinations(axes, 2)
        for x in axes[a]
        for y in axes[b]
    }
    rows = []
    while missing:
        row = _row(axes, missing, met)
        rows.append(row)
        pairs = [frozenset(pair) for pair in combinations(row.items(), 2)]
        missing.difference_update(pairs)
        met.update(pairs)
    return rows


def _row(
    axes: Mapping[str, Sequence[str]], missing: set[frozenset[Fact]], met: Counter[frozenset[Fact]]
) -> dict[str, str]:
    """A row with many missing pairs, and among the others those that were met the least often.

    It begins with the axis that has the value with the most missing pairs: some pair is new.
    """
    left = Counter(fact for pair in missing for fact in pair)
    chosen: list[Fact] = []
    for axis in sorted(axes, key=lambda axis: -max(left[axis, value] for value in axes[axis])):

        def gain(value: str, axis: str = axis) -> tuple[int, int, int]:
            pairs = [frozenset(((axis, value), other)) for other in chosen]
            new = sum(pair in missing for pair in pairs)
            return new, -sum(met[pair] for pair in pairs), left[axis, value]

        chosen.append((axis, max(axes[axis], key=gain)))
    found = dict(chosen)
    return {axis: found[axis] for axis in axes}
