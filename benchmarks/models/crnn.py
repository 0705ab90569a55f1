"""A text recogniser: convolutions, two bidirectional LSTMs, and a linear layer of characters.

Shi, Bai and Yao, "An end-to-end trainable neural network for image-based sequence recognition",
2015, at the sizes that EasyOCR and docTR use: 32 steps, H=256.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_BATCH, _CHARACTERS, _LENGTH = 16, 97, 8


class Sequence(nn.Module):
    """A bidirectional layer and the linear layer behind it."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, inputs] to [B, T, outputs]."""
        self.rnn.flatten_parameters()
        return self.linear(self.rnn(x)[0])


class Recogniser(nn.Module):
    """Images [B, 1, 32, 128] to the scores of characters [B, 32, characters]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width, pool in ((64, 2), (128, 2), (256, (2, 1)), (256, (2, 1)), (512, (2, 1))):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(pool)]
            before = width
        self.features = nn.Sequential(*layers)
        self.sequence = nn.Sequential(Sequence(512, 256, 256), Sequence(256, 256, _CHARACTERS))

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return self.sequence(self.features(images).squeeze(2).transpose(1, 2))


def _images(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(_BATCH, 1, 32, 128, generator=generator).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    images = _images(dtype)
    return lambda: model(images)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of CTC."""
    images = _images(dtype)
    text = torch.randint(
        1, _CHARACTERS, (_BATCH, _LENGTH), generator=torch.Generator().manual_seed(2)
    )
    steps, lengths = torch.full((_BATCH,), 32), torch.full((_BATCH,), _LENGTH)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> Tensor:
        scores = model(images).log_softmax(-1).transpose(0, 1)
        loss = nn.functional.ctc_loss(scores, text, steps, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="CRNN text recognition",
    recurrent="2 x LSTM(256), bidirectional",
    call="B=16, T=32, batch_first, flatten_parameters() in forward",
    source="rebuilt from Shi et al. 2015 at the sizes of EasyOCR; random weights",
    remark="convolutions bound it, and eager's dense LSTM is that of oneDNN",
    build=Recogniser,
    inference=inference,
    training=training,
)
