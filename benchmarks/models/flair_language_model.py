"""A character language model as flair's embeddings use it: one large LSTM, states carried.

Akbik et al., "Contextual String Embeddings for Sequence Labeling", 2018: embeddings of 100, 2,048
hidden features, 275 characters, sequences of 250 characters in training; here 32, which take
as long for each character.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_CHARACTERS, _EMBEDDED, _HIDDEN, _STEPS, _BATCH = 275, 100, 2048, 32, 8


class LanguageModel(nn.Module):
    """Characters `[T, B]` to the scores of the next ones, the features, and the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(_CHARACTERS, _EMBEDDED)
        self.rnn = nn.LSTM(_EMBEDDED, _HIDDEN)
        self.decoder = nn.Linear(_HIDDEN, _CHARACTERS)

    def forward(self, characters: Tensor, states: tuple[Tensor, Tensor]):
        """The scores `[T, B, characters]`, the features `[T, B, H]`, and the states."""
        output, states = self.rnn(self.encoder(characters), states)
        return self.decoder(output), output, states


def _text() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(_CHARACTERS, (_STEPS + 1, _BATCH), generator=generator)


def _zeros(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, _BATCH, _HIDDEN, dtype=dtype), torch.zeros(
        1, _BATCH, _HIDDEN, dtype=dtype
    )


def inference(model: nn.Module, dtype: torch.dtype):
    """The features of a text in two pieces."""
    text = _text()[1:]

    def call() -> list[Tensor]:
        states, found = _zeros(dtype), []
        for piece in text.split(_STEPS // 2):
            _, features, states = model(piece, states)
            found.append(features)
        return found

    return call


def training(model: nn.Module, dtype: torch.dtype):
    """One step of SGD with clipped gradients; the states go on from step to step."""
    text = _text()
    states = _zeros(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)

    def step() -> Tensor:
        nonlocal states
        scores, _, states = model(text[:-1], tuple(state.detach() for state in states))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), text[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Flair character language model",
    recurrent="LSTM(100, 2048)",
    remark="Weights of H=2048 are read once a step.",
    call="B=8, T=32 (inference in two calls of 16), states carried",
    source="rebuilt from Akbik et al. 2018 at the sizes of flair's models; random weights and text",
    build=LanguageModel,
    inference=inference,
    training=training,
)
