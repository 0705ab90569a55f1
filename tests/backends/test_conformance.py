"""Every installed backend goes through the whole conformance kit."""

from rnnjit.testing import conformance


@conformance()
def test_conformance(backend, case, check):
    check(backend, case)
