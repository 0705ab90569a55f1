"""The detector: three GRUs of RNNoise's sizes, and how it is trained and judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from features import BANDS, features, labels
from sounds import clip
from torch import Tensor, nn
from torch.nn import functional as F

#: Hidden units of each GRU.
SIZES = (24, 48, 96)
BATCH, LEARNING_RATE = 16, 6e-3


class Detector(nn.Module):
    """The probability, as a logit, that somebody speaks in a frame: an ordinary model."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (BANDS, *SIZES[:-1])
        self.register_buffer("mean", torch.zeros(BANDS))
        self.register_buffer("scale", torch.ones(BANDS))
        self.grus = nn.ModuleList(nn.GRU(*sizes) for sizes in zip(inputs, SIZES, strict=True))
        self.head = nn.Linear(SIZES[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[T, B]` of features `[T, B, BANDS]`."""
        y = (x - self.mean) * self.scale
        for gru in self.grus:
            y, _ = gru(y)
        return self.head(y)[..., 0]


class Data(NamedTuple):
    """Features `[T, clips, BANDS]`, and whether somebody speaks, 0 or 1, `[T, clips]`."""

    x: Tensor
    speech: Tensor


def make_data(seed: int, clips: int, seconds: float) -> Data:
    """Clips of a random generator's."""
    source = np.random.default_rng(seed)
    made = [clip(source, seconds) for _ in range(clips)]
    x = np.stack([features(one.samples) for one in made], axis=1)
    speech = np.stack([labels(one.speech) for one in made], axis=1)
    return Data(torch.tensor(x, dtype=torch.float32), torch.tensor(speech, dtype=torch.float32))


def train(model: nn.Module, data: Data, epochs: int) -> list[float]:
    """Train; the mean loss of each epoch."""
    model.mean.copy_(data.x.mean((0, 1)))
    model.scale.copy_(1 / data.x.std((0, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(data.x.shape[1]).split(BATCH):
            logits = model(data.x[:, batch])
            loss = F.binary_cross_entropy_with_logits(logits, data.speech[:, batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        losses.append(total / data.x.shape[1])
    return losses


def accuracy(scores: Tensor, speech: Tensor) -> float:
    """The share of frames that are told right, speech being where the score is above 0."""
    return float(((scores > 0) == (speech > 0.5)).double().mean())


def best_by_energy(data: Data) -> float:
    """The accuracy by a threshold on the energy of a frame, the best threshold there is."""
    energy = (10**data.x).sum(-1).log10()
    steps = torch.linspace(float(energy.min()), float(energy.max()), 200)
    return max(accuracy(energy - step, data.speech) for step in steps)
