"""Perceptual decisions: an nn.RNN learns a task of NeuroGym, as the package's tutorial does.

Trials of noisy stimuli one after the other, 100 steps of a batch of 16. An nn.RNN of 64 relu units
and a linear layer name the choice at every step.
"""

from __future__ import annotations

from functools import cache
from itertools import cycle

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_BATCH, _STEPS, _BATCHES = 16, 100, 20


class Network(nn.Module):
    """Observations [T, B, 3] to scores of choices [T, B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 64, nonlinearity="relu")
        self.linear = nn.Linear(64, 3)

    def forward(self, seen: Tensor) -> Tensor:
        """The scores."""
        return self.linear(self.rnn(seen)[0])


@cache
def _trials() -> list[tuple[Tensor, Tensor]]:
    """Observations and choices of some batches: made once, since not all of it can be seeded."""
    import neurogym

    dataset = neurogym.Dataset(
        "PerceptualDecisionMaking-v0", batch_size=_BATCH, seq_len=_STEPS, cache_len=10 * _STEPS
    )
    pairs = [tuple(map(torch.from_numpy, dataset())) for _ in range(_BATCHES)]
    return [(seen.clone(), choices.long().flatten()) for seen, choices in pairs]


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    seen = _trials()[0][0].to(dtype)
    return lambda: model(seen)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    trials = cycle(_trials())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        seen, choices = next(trials)
        scores = model(seen.to(dtype)).flatten(0, 1)
        loss = nn.functional.cross_entropy(scores, choices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="NeuroGym perceptual decisions",
    recurrent="RNN(3, 64), relu",
    remark="nn.RNN, which eager computes step by step.",
    call=f"B={_BATCH}, T={_STEPS}",
    source="neurogym 2.3.1 makes the trials; the network as its tutorials build it; random weights",
    requires=("neurogym==2.3.1",),
    build=Network,
    inference=inference,
    training=training,
)
