"""A classifier of sentiment: embeddings, an nn.RNN over padded text, its last state.

The first model of many tutorials: 100 features, 256 units, 64 reviews of 20 to 500 words. Shorter
reviews end in padding, over which the gradient of the last state vanishes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_WORDS, _BATCH = 5000, 64


class Classifier(nn.Module):
    """Words [T, B] to a score [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, 100, padding_idx=0)
        self.rnn = nn.RNN(100, 256)
        self.linear = nn.Linear(256, 1)

    def forward(self, words: Tensor) -> Tensor:
        """The scores."""
        return self.linear(self.rnn(self.embedding(words))[1][-1]).squeeze(1)


def _reviews() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(20, 501, (_BATCH,), generator=generator)
    words = torch.randint(1, _WORDS, (500, _BATCH), generator=generator)
    words[torch.arange(500)[:, None] >= lengths] = 0
    return words, torch.randint(0, 2, (_BATCH,), generator=generator)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    words, _ = _reviews()
    return lambda: model(words)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    words, labels = _reviews()
    labels = labels.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(model(words), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="sentiment, padded",
    recurrent="RNN(100, 256)",
    remark="A loss on the last state: gradients become subnormal, which slows eager.",
    call="B=64, T=500, padded, the last state alone is used",
    source="rebuilt at the sizes of tutorials; random weights and words",
    build=Classifier,
    inference=inference,
    training=training,
)
