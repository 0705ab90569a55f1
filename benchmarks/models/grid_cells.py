"""Path integration: an nn.RNN of relu units learns to say where it is from its velocity.

Sorscher et al., "A unified theory for the origin of grid cells through the lens of pattern
formation", 2019: 4096 units, 512 place cells, 20 steps; a batch of 64 for the paper's 200.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_UNITS, _PLACES, _STEPS, _BATCH = 4096, 512, 20, 64


class PathIntegrator(nn.Module):
    """Velocities [T, B, 2] and the place cells of the start [B, places] to their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(_PLACES, _UNITS, bias=False)
        self.rnn = nn.RNN(2, _UNITS, nonlinearity="relu", bias=False)
        self.decoder = nn.Linear(_UNITS, _PLACES, bias=False)

    def forward(self, velocities: Tensor, start: Tensor) -> Tensor:
        """Scores [T, B, places]."""
        return self.decoder(self.rnn(velocities, self.encoder(start)[None])[0])


def _walk(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Velocities, and the place cells at every position, the start included."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(_PLACES, 2, generator=generator) * 2.2 - 1.1
    velocities = torch.randn(_STEPS, _BATCH, 2, generator=generator) * 0.1
    start = torch.rand(1, _BATCH, 2, generator=generator) * 2.2 - 1.1
    positions = start + torch.cat([torch.zeros_like(start), velocities.cumsum(0)])
    far = (positions[:, :, None] - centres).square().sum(-1)
    return velocities.to(dtype), (-far / (2 * 0.12**2)).softmax(-1).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores along a walk."""
    velocities, places = _walk(dtype)
    return lambda: model(velocities, places[0])


def training(model: PathIntegrator, dtype: torch.dtype):
    """One step of Adam, with the paper's decay of the recurrent weights."""
    velocities, places = _walk(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> Tensor:
        scores = model(velocities, places[0])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), places[1:].flatten(0, 1))
        loss = loss + 1e-4 * model.rnn.weight_hh_l0.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="grid cells",
    recurrent="RNN(2, 4096), relu",
    remark="Products of H=4096 take all of the time.",
    call=f"B={_BATCH}, T={_STEPS}, a start state from a linear layer",
    source="rebuilt from Sorscher et al. 2019, a batch of 64 for 200; random weights",
    build=PathIntegrator,
    inference=inference,
    training=training,
    steps=2,
)
