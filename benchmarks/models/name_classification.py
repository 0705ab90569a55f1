"""A classifier of names, letter by letter: a tanh RNN called once for each letter, one row.

It is the first recurrent network of many courses: 57 letters, 128 hidden features, 18 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_LETTERS, _HIDDEN, _CLASSES, _NAMES = 57, 128, 18, 16


class Classifier(nn.Module):
    """Letters `[T, 1, 57]` to the scores of classes `[1, 18]`."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(_LETTERS, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, _CLASSES)

    def forward(self, letters: Tensor) -> Tensor:
        """The scores after the last letter."""
        _, h_n = self.rnn(letters)
        return self.output(h_n[0]).log_softmax(-1)


def _names(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Names of 3 to 18 letters and their classes."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in torch.randperm(_NAMES, generator=generator).add(3).tolist():
        letters = torch.randint(_LETTERS, (length, 1), generator=generator)
        label = torch.randint(_CLASSES, (1,), generator=generator)
        found.append((nn.functional.one_hot(letters, _LETTERS).to(dtype), label))
    return found


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of some names."""
    names = _names(dtype)
    return lambda: [model(letters) for letters, _ in names]


def training(model: nn.Module, dtype: torch.dtype):
    """One step of SGD for each name."""
    names = _names(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 5e-3)

    def step() -> Tensor:
        losses = []
        for letters, label in names:
            loss = nn.functional.nll_loss(model(letters), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    return step


CASE = ModelCase(
    name="Name classification",
    recurrent="RNN(57, 128)",
    remark="One sequence of a few letters a call: Python is most of a training step.",
    call="B=1, T of 3 to 18 letters, 16 names one by one",
    source="rebuilt at the sizes of PyTorch's tutorial on names; random weights and names",
    build=Classifier,
    inference=inference,
    training=training,
)
