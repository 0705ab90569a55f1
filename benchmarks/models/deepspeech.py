"""A speech recogniser: dense layers, one bidirectional ReLU RNN, dense layers, and CTC.

Hannun et al., "Deep Speech: Scaling up end-to-end speech recognition", 2014, at half of its 2,048
hidden features: 494 inputs (a frame and nine on each side), clipped ReLU, 29 characters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_INPUTS, _HIDDEN, _CHARACTERS, _STEPS, _BATCH, _LENGTH = 494, 1024, 29, 100, 4, 12


class Recogniser(nn.Module):
    """Frames `[T, B, 494]` to the scores of characters `[T, B, 29]`."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.ModuleList(
            [nn.Linear(inputs, _HIDDEN) for inputs in (_INPUTS, _HIDDEN, _HIDDEN)]
        )
        self.rnn = nn.RNN(_HIDDEN, _HIDDEN, nonlinearity="relu", bidirectional=True)
        self.last, self.output = nn.Linear(_HIDDEN, _HIDDEN), nn.Linear(_HIDDEN, _CHARACTERS)
        with torch.no_grad():  # states of a ReLU grow without bound under larger weights
            for name, weight in self.rnn.named_parameters():
                if name.startswith("weight_hh"):
                    weight.mul_(0.5)

    def forward(self, frames: Tensor) -> Tensor:
        """The scores."""
        for layer in self.dense:
            frames = layer(frames).clamp(0, 20)
        forward, backward = self.rnn(frames)[0].chunk(2, -1)
        return self.output(self.last(forward + backward).clamp(0, 20))


def _frames(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(_STEPS, _BATCH, _INPUTS, generator=generator).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    frames = _frames(dtype)
    return lambda: model(frames)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of SGD on CTC."""
    frames = _frames(dtype)
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(1, _CHARACTERS, (_BATCH, _LENGTH), generator=generator)
    steps, lengths = torch.full((_BATCH,), _STEPS), torch.full((_BATCH,), _LENGTH)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.ctc_loss(model(frames).log_softmax(-1), text, steps, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Deep Speech",
    recurrent="RNN(1024, 1024), ReLU, bidirectional",
    remark="nn.RNN, which eager computes step by step; linear layers take the rest.",
    call="B=4, T=100",
    source="rebuilt from Hannun et al. 2014 at half of its width; random weights and frames",
    build=Recogniser,
    inference=inference,
    training=training,
)
