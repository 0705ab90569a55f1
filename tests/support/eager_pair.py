"""An eager layer and its compiled twin in float64, and what their derivatives are taken of."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit
from rnnjit.testing import RecomputeBackend

BACKENDS = [RecomputeBackend(), *(b for b in rnnjit.backends().values() if not b.missing())]
# The core hands every backend the same: where tests are many, these stand for all.
FEW = [backend for backend in BACKENDS if backend.name in ("recompute", "numba")]
T, B, I, H = 4, 3, 2, 5
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def pair(backend, make=nn.RNN, **config):
    torch.manual_seed(0)
    rnn = make(I, H, dtype=torch.float64, **config)
    return rnn, rnnjit.compile(rnn, backend=backend)


def inputs(layers=1):
    torch.manual_seed(1)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(layers, B, H, dtype=torch.float64, requires_grad=True)


def agree(function, rnn, fast):
    """`function(module)` gives the same tensors on both."""
    torch.testing.assert_close(function(fast), function(rnn), **CLOSE)


def weigh(y, last, through="both"):
    """What derivatives are taken of: a number that depends on y, on the last states, or on both."""
    data = y.data if isinstance(y, PackedSequence) else y
    ends = last if isinstance(last, tuple) else (last,)
    terms = {
        "y": (data * (1 + data).sin()).sum(),
        "h_n": sum((state * state.cos()).sum() for state in ends),
    }
    return sum(terms.values()) if through == "both" else terms[through]
