"""Parameters of tests over products: some combinations in `make test`, all in `make test-all`."""

from itertools import product

import pytest

from rnnjit.testing.covering import covering


def covered(*axes):
    """A parameter for each combination; those beyond a covering array are marked `full`."""
    if not all(axes):
        return []
    rows = covering({str(i): list(map(str, range(len(axis)))) for i, axis in enumerate(axes)})
    kept = {tuple(map(int, row.values())) for row in rows}
    return [
        pytest.param(
            *(axis[index] for axis, index in zip(axes, row, strict=True)),
            marks=() if row in kept else pytest.mark.full,
        )
        for row in product(*(range(len(axis)) for axis in axes))
    ]


def in_turn(values, others):
    """Each value with each of `others`: with one in `make test`, a different one each time."""
    return [
        pytest.param(value, other, marks=() if (v + o) % len(others) == 0 else pytest.mark.full)
        for v, value in enumerate(values)
        for o, other in enumerate(others)
    ]


def in_full(*axes):
    """All combinations, for `make test-all` alone."""
    return [pytest.param(*values, marks=pytest.mark.full) for values in product(*axes)]
