"""Parameters of tests over products: some combinations in `make test`, all in `make test-all`."""

from itertools import product

import pytest
import torch

from rnnjit.testing.covering import covering


def covered(*axes):
    """A parameter for each combination; those beyond a covering array are marked `full`."""
    rows = covering({str(i): list(map(str, range(len(axis)))) for i, axis in enumerate(axes)})
    kept = {tuple(map(int, row.values())) for row in rows}
    return [
        pytest.param(
            *(axis[index] for axis, index in zip(axes, row, strict=True)),
            marks=() if row in kept else pytest.mark.full,
        )
        for row in product(*(range(len(axis)) for axis in axes))
    ]


def turns(values, dtypes=(torch.float32, torch.float64)):
    """Each value with each dtype; but for one of them, which takes turns, these are `full`."""
    return [
        pytest.param(value, dtype, marks=() if (v + d) % len(dtypes) == 0 else pytest.mark.full)
        for v, value in enumerate(values)
        for d, dtype in enumerate(dtypes)
    ]
