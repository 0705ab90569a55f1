"""Protects the covering array of the kit's cases: any two facts meet in one of them."""

from itertools import combinations, product

import pytest

from rnnjit.ir import LSTM
from rnnjit.testing import CASES, RecomputeBackend
from rnnjit.testing.cases import AXES, REQUIRED_CELLS, product_cases
from rnnjit.testing.covering import covering
from rnnjit.testing.suite import pairs

SHAPES = [(2, 2), (4, 3, 2), (2,) * 12, (12, 6, 5, 5, 5, 4, 3, 2, 2, 2, 2), (1, 3, 1)]


def axes_of(shape):
    return {f"axis{i}": [f"value{j}" for j in range(count)] for i, count in enumerate(shape)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_two_values_share_a_row(shape):
    axes = axes_of(shape)
    rows = covering(axes)
    for (a, xs), (b, ys) in combinations(axes.items(), 2):
        assert {(row[a], row[b]) for row in rows} == set(product(xs, ys))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_are_few_rows_and_the_same_each_time(shape):
    axes = axes_of(shape)
    rows = covering(axes)
    largest, second = (*sorted(shape, reverse=True), 1)[:2]
    assert largest * second <= len(rows) <= 1.25 * largest * second + 8
    assert rows == covering(axes)


def has(case, options):
    return all(getattr(case, name) == value for name, value in options.items())


@pytest.mark.parametrize("layer", AXES)
def test_any_two_facts_of_a_layer_meet_in_a_case(layer):
    # What all cases have, as most have one cell.
    alone = [next(iter(axis.values())) for axis in AXES[layer].values() if len(axis) == 1]
    always = {name: value for options in alone for name, value in options.items()}
    for (_, xs), (_, ys) in combinations(AXES[layer].items(), 2):
        for first, second in product(xs.values(), ys.values()):
            # A fact may imply another, as a gradient for h0 alone implies an h0.
            facts = {**first, **second, **always}
            assert any(has(case, facts) for case in CASES), facts


def test_the_product_has_every_combination_of_options_and_kinds_of_input_once():
    facts = [
        (c.spec, c.dtype, c.h0, c.batch_first, c.unbatched, c.lengths, c.T, c.B)
        for c in product_cases()
    ]
    assert len(facts) == len(set(facts))
    assert 600 < len(facts) <= 2**5 * 3 * 5 + 2**4 * (2 * 2 * 2 + 2 * 2)
    ids = [case.id for case in (*CASES, *product_cases())]
    assert len(ids) == len(set(ids))


class TwoFacts(RecomputeBackend):
    """Fails where two facts meet, and nowhere else."""

    name = "two-facts"

    def __init__(self, *facts):
        self.facts = facts

    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        if all(fact(layer, rows, x) for fact in self.facts):
            output.y.mul_(1.01)
        return output


FACTS = {
    "packed": lambda layer, rows, x: rows.batch_sizes is not None,
    "wide": lambda layer, rows, x: layer.hidden_size == 257,
    "double": lambda layer, rows, x: x.element_size() == 8,
    "no bias": lambda layer, rows, x: not layer.bias,
    "one feature": lambda layer, rows, x: layer.input_size == 1,
    "one step": lambda layer, rows, x: rows.T == 1,
}
PROJECTED = {"projected": lambda layer, rows, x: layer.proj_size > 0}


@pytest.mark.parametrize("names", list(combinations(FACTS, 2)), ids="-".join)
def test_a_fault_of_two_facts_is_found(names):
    assert fails_in_some_case_of(REQUIRED_CELLS, names)


@pytest.mark.parametrize("name", sorted(FACTS.keys() - {"wide"}))
def test_a_fault_of_a_projection_and_another_fact_is_found(name):
    assert fails_in_some_case_of({LSTM}, ["projected", name])


def fails_in_some_case_of(cells, names):
    backend = TwoFacts(*((FACTS | PROJECTED)[name] for name in names))
    for pair in pairs():
        if pair.name == "forward" and pair.case.cell in cells and not pair.case.user_cell:
            try:
                pair.check.run(backend, pair.case)
            except AssertionError:
                return True
    return False
