"""The classifier of names with an RNNCell of its own, called once for each letter, one row.

Many courses write the recurrence as a loop over the letters: 57 letters, 128 hidden features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_LETTERS, _HIDDEN, _CLASSES = 57, 128, 18


class Classifier(nn.Module):
    """Letters `[T, 1, 57]` to the scores of classes `[1, 18]`."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(_LETTERS, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, _CLASSES)

    def forward(self, letters: Tensor) -> Tensor:
        """The scores after the last letter."""
        h = letters.new_zeros(1, _HIDDEN)
        for letter in letters:
            h = self.cell(letter, h)
        return self.output(h).log_softmax(-1)


def _names(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Names of 1 to 20 letters and their classes."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in range(1, 21):
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
    name="Name classification by letters",
    recurrent="RNNCell(57, 128)",
    remark="A Cell's call runs torch's own operator where that is as fast.",
    call="B=1, a call for each of 1 to 20 letters, 20 names one by one",
    source="rebuilt at the sizes of PyTorch's tutorial on names; random weights and names",
    build=Classifier,
    inference=inference,
    training=training,
)
