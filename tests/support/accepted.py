"""Which backends a test can run a call on: those that accept it, and no list of names.

That a backend declines nothing it should take is the conformance kit's to see.
"""

from rnnjit.dispatch.choice import verdict, why_not_cell


def accepts(backend, case, *, needs_grad=True):
    """Whether a backend takes a case of the kit."""
    return not verdict(backend, case.spec, case.problem(needs_grad=needs_grad)).reasons


def computing(backends, *cells):
    """Those of some backends that compute these cells."""
    return [
        backend for backend in backends if not any(why_not_cell(backend, cell) for cell in cells)
    ]
