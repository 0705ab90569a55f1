"""The installed backends that run here and compute the layers of a torch class."""

from torch import nn

import rnnjit
from rnnjit.dispatch.choice import why_not_cell
from rnnjit.frontend.capture import cell_of


def computing(make, **options):
    """Names of the backends that compute `make(...)`, the one that `auto` prefers first."""
    cell = cell_of(make(1, 1, **options))
    return [
        name
        for name, backend in rnnjit.backends().items()
        if not backend.missing() and not why_not_cell(backend, cell)
    ]


def usual(make: type[nn.Module]) -> str:
    """What to compile for: "auto", which leaves alone what eager alone computes, else "eager"."""
    return "eager" if computing(make) == ["eager"] else "auto"
