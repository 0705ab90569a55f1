"""Protects what `auto` leaves to torch's own operators: large weights that are read once a step."""

from itertools import product

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit import Problem, RNNSpec
from rnnjit.cells import RNN_TANH
from rnnjit.codegen.deferral import why_torch
from rnnjit.dispatch.choice import choose

LARGE, HUGE = (512, 512), (1024, 1024)


def reasons(T, B, sizes=LARGE, *, trains=False, layers=1, dtype=torch.float32):
    I, H = sizes
    problem = Problem(dtype, "cpu", T, B, T * B, False, trains)
    return why_torch(RNNSpec(I, H, layers, cell=RNN_TANH), problem)


@pytest.mark.parametrize(
    ("call", "left"),
    [
        (reasons(1, 1), True),
        (reasons(8, 1), True),
        (reasons(9, 1), False),
        (reasons(1, 2), False),
        (reasons(1, 1, trains=True), True),
        (reasons(2, 1, trains=True), False),
        (reasons(1, 1, (32, 64)), False),
        (reasons(1, 64), False),
        (reasons(1, 64, HUGE), True),
        (reasons(2, 64, HUGE), False),
        (reasons(1, 4, HUGE), False),
        (reasons(1, 16, HUGE, trains=True), False),
        (reasons(1, 32, HUGE, trains=True), True),
        # The weights count in bytes, and those of the layers after the first.
        (reasons(1, 1, (300, 300)), False),
        (reasons(1, 1, (300, 300), dtype=torch.float64), True),
        (reasons(1, 64, (1, 1000)), False),
        (reasons(1, 64, (1, 1000), layers=2), True),
        (reasons(5, 4000, (8, 1), trains=True), True),
        (reasons(5, 4000, (8, 1)), False),
        (reasons(5, 4000, (8, 2), trains=True), False),
    ],
)
def test_calls_are_left_to_torch(call, left):
    assert bool(call) is left


def test_the_answer_depends_on_sizes_by_powers_of_two():
    """As `sizes_matter` of False says: one answer then serves all calls of such a class."""
    for sizes, trains in product([(1, 1), LARGE, HUGE], [False, True]):
        for low in (1, 2, 4, 8, 16, 32, 64, 1024, 2048):
            for T in (low + 1, 2 * low):
                assert reasons(T, 1, sizes, trains=trains) == [] or T <= 8
            same = {bool(reasons(1, B, sizes, trains=trains)) for B in range(low + 1, 2 * low + 1)}
            assert len(same) == 1, (sizes, trains, low)


def test_auto_leaves_a_step_of_large_weights_to_torch_and_says_so():
    module, x = rnnjit.compile(nn.RNN(1024, 1024)), torch.randn(1, 64, 1024)
    with torch.no_grad():
        report = str(rnnjit.explain(module, x))
    assert "-> eager" in report
    assert "but defers: a single step is two products for each layer, with 8 MB" in report


def test_a_backend_that_is_named_runs_the_call():
    spec = RNNSpec(1024, 1024, 1, cell=RNN_TANH)
    problem = Problem(torch.float32, "cpu", 1, 64, 64, False, False)
    numba = rnnjit.backends()["numba"]
    assert numba.defers(spec, problem)
    assert choose(spec, problem, numba) is numba
    assert choose(spec, problem, None).name == "eager"
