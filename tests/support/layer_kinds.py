"""The recurrent layers of torch, for tests that hold for every one of them."""

from functools import partial

import pytest
import torch
from eager_pair import FEW
from torch import nn

#: What makes a layer of I inputs and H units, with torch's own options.
KINDS = {
    "RNN": nn.RNN,
    "LSTM": nn.LSTM,
    "projected": partial(nn.LSTM, proj_size=2),
    "GRU": nn.GRU,
}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def first_of(*names):
    """Parameters, the names of all kinds: these in `make test`, the others in `make test-all`."""
    return [pytest.param(k, marks=() if k in names else pytest.mark.full) for k in KINDS]


def kinds_on_few(*others):
    """Every kind on one of `FEW` in `make test`, and on each of them in `make test-all`.

    Args:
        others: what each kind also goes with: with one in turn in `make test`.

    Returns:
        Parameters `(make, backend)`, or `(make, backend, other)`.
    """
    rows = []
    for k, (name, make) in enumerate(KINDS.items()):
        for backend in FEW:
            for o, other in enumerate(others or [None]):
                quick = (backend.name == "recompute") == (name == "projected")
                quick = quick and (k + o) % max(len(others), 1) == 0
                row = (make, backend, other) if others else (make, backend)
                label = "-".join([name, backend.name, *([str(other)] if others else [])])
                marks = () if quick else pytest.mark.full
                rows.append(pytest.param(row, id=label, marks=marks))
    return rows


def width(rnn):
    """How many columns a direction's output has: P or H."""
    return rnn.proj_size or rnn.hidden_size


def state_widths(rnn):
    """How many columns each state has, such as (P, H) of a projected nn.LSTM."""
    return (width(rnn), rnn.hidden_size) if rnn.mode == "LSTM" else (width(rnn),)


def states(hx):
    """The states of a layer, such as h_n, or h_n and c_n, as a tuple."""
    return hx if isinstance(hx, tuple) else (hx,)


def as_hx(given):
    """A tuple of states in the form that a layer takes and returns."""
    return tuple(given) if len(given) > 1 else given[0]


def initial(rnn, *batch, seed=0):
    """Drawn states `[L*D, B, P or H]`, or `[L*D, P or H]` without B, in the layer's form."""
    generator = torch.Generator().manual_seed(seed)
    count, dtype = rnn.num_layers * (1 + rnn.bidirectional), rnn.weight_hh_l0.dtype
    shapes = [(count, *batch, columns) for columns in state_widths(rnn)]
    return as_hx([torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes])
