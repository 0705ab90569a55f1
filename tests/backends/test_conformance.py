"""Protects every installed backend: the conformance kit, against eager."""

import pytest

import rnnjit
from rnnjit.testing import conformance, run


@conformance()
def test_conformance(backend, case, check):
    check(backend, case)


@pytest.mark.full
@pytest.mark.parametrize("name", rnnjit.backends())
def test_every_combination_of_options(name):
    report = run(name, full=True)
    if report.missing:
        pytest.skip("; ".join(report.missing))
    assert report.failures == ()
