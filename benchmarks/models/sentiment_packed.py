"""A classifier of sentiment: embeddings, an nn.RNN over packed text, its last state.

As `sentiment_padded.py`: 100 features, 256 units, a batch of 64 reviews of 20 to 500 words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnnjit.bench.models import ModelCase

_WORDS, _BATCH = 5000, 64


class Classifier(nn.Module):
    """Words [T, B] and lengths [B] to a score [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, 100, padding_idx=0)
        self.rnn = nn.RNN(100, 256)
        self.linear = nn.Linear(256, 1)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """The scores."""
        packed = pack_padded_sequence(self.embedding(words), lengths, enforce_sorted=False)
        return self.linear(self.rnn(packed)[1][-1]).squeeze(1)


def _reviews() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(20, 501, (_BATCH,), generator=generator)
    lengths[0] = 500
    words = torch.randint(1, _WORDS, (500, _BATCH), generator=generator)
    words[torch.arange(500)[:, None] >= lengths] = 0
    return words, lengths, torch.randint(0, 2, (_BATCH,), generator=generator)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    words, lengths, _ = _reviews()
    return lambda: model(words, lengths)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    words, lengths, labels = _reviews()
    labels = labels.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(model(words, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="sentiment, packed",
    recurrent="RNN(100, 256)",
    remark="Packed nn.RNN: eager has a product for each step's weight gradient.",
    call="B=64, T<=500, packed, the last state alone is used",
    source="rebuilt at the sizes of tutorials; random weights and words",
    build=Classifier,
    inference=inference,
    training=training,
)
