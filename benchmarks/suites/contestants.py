"""Who is timed: eager nn.RNN, and every backend that can run on this machine's CPU."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

import rnnjit
from rnnjit import Problem, RNNSpec
from rnnjit.registry import lacking

#: PyTorch's own layer. "eager" is the backend of that name, behind rnnjit's dispatch.
EAGER = "nn.RNN"
_PLAIN = RNNSpec(8, 8), Problem(torch.float32, "cpu", 2, 2, 4, False, False)


@cache
def contestants() -> tuple[str, ...]:
    """By name, eager first."""
    return EAGER, *(
        name
        for name, backend in rnnjit.backends().items()
        if not lacking(backend) and not backend.why_not(*_PLAIN)
    )


def compiled(rnn: nn.RNN, contestant: str) -> nn.Module:
    """What stands for `rnn`, over the same weights; `rnn` itself for eager."""
    return rnn if contestant == EAGER else rnnjit.compile(rnn, backend=contestant)


def declines(contestant: str, spec: RNNSpec, problem: Problem) -> str:
    """Why it does not offer such a call; "" if it does."""
    if contestant == EAGER:
        return ""
    return "; ".join(rnnjit.backends()[contestant].why_not(spec, problem))
