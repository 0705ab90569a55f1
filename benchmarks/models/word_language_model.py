"""A word-level language model: two layers of a tanh RNN between an embedding and a decoder.

The sizes are those of PyTorch's example `word_language_model` with `--model RNN_TANH`: 200
features, two layers, dropout 0.2, sequences of 35 words, batches of 20, and the 10,000 words
of the Penn Treebank. The decoder takes most of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_WORDS, _FEATURES, _STEPS, _BATCH = 10_000, 200, 35, 20


class LanguageModel(nn.Module):
    """Words `[T, B]` to the scores of the next words `[T, B, words]`, and the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(_WORDS, _FEATURES)
        self.rnn = nn.RNN(_FEATURES, _FEATURES, 2, nonlinearity="tanh", dropout=0.2)
        self.decoder = nn.Linear(_FEATURES, _WORDS)

    def forward(self, words: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The scores."""
        output, hidden = self.rnn(self.drop(self.encoder(words)), hidden)
        return self.decoder(self.drop(output)), hidden


def _text() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(_WORDS, (_STEPS + 1, _BATCH), generator=generator)
    return text[:-1], text[1:].flatten()


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    words, _ = _text()
    hidden = torch.zeros(2, _BATCH, _FEATURES, dtype=dtype)
    return lambda: model(words, hidden)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of SGD with clipped gradients; the states go on from step to step."""
    words, following = _text()
    hidden = torch.zeros(2, _BATCH, _FEATURES, dtype=dtype)
    # Dropout draws other numbers in float64, so that losses could not be compared.
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.RNNBase)):
            module.eval()
    parameters = list(model.parameters())

    def step() -> Tensor:
        nonlocal hidden
        scores, hidden = model(words, hidden.detach())
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), following)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.25)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(parameter.grad, alpha=-5.0)
        return loss

    return step


CASE = ModelCase(
    name="Word language model",
    recurrent="RNN(200, 200), 2 layers",
    remark="The decoder of 10,000 words takes nearly all of the time.",
    call="B=20, T=35, states carried, 10,000 words",
    source="rebuilt at the sizes of PyTorch's example word_language_model; random weights and text",
    build=LanguageModel,
    inference=inference,
    training=training,
)
