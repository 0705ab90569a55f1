"""Silero VAD on recordings: blocks of 512 chunks (16 s), whose LSTM runs as one sequence.

The model of `silero_vad.py`, called as the package's own `SileroVADSequence` is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase, load_case

_CHUNKS = 512


class BlockVad(nn.Module):
    """Chunks of one recording with their context [T, 576] to probabilities [T, 1]."""

    def __init__(self, stream: nn.Module) -> None:
        super().__init__()
        self.stream = stream
        cell = stream.rnn
        del stream.rnn
        self.rnn = nn.LSTM(128, 128)
        for name, parameter in cell.named_parameters():
            setattr(self.rnn, f"{name}_l0", parameter)

    def forward(self, chunks: Tensor, state: tuple[Tensor, Tensor] | None = None):
        """The probabilities, and the state for the next block."""
        y, state = self.rnn(self.stream.features(chunks).unsqueeze(1), state)
        return self.stream.probability(y.squeeze(1)), state


def build() -> BlockVad:
    """The model with the package's weights."""
    return BlockVad(load_case(Path(__file__).with_name("silero_vad.py")).build())


def inference(model: nn.Module, dtype: torch.dtype):
    """A block."""
    samples = 64 + _CHUNKS * 512
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(1))
    audio = 0.1 * torch.linspace(0, 40, samples).sin().abs() * noise
    chunks = audio.to(dtype).unfold(0, 576, 512).contiguous()
    return lambda: model(chunks)


CASE = ModelCase(
    name="Silero VAD, blocks",
    recurrent="LSTM(128, 128)",
    call="B=1, T=512",
    source="rebuilt from the description in silero-vad 6.2.3; its weights",
    requires=("silero-vad==6.2.3",),
    remark="Convolutions take nearly all of the time.",
    build=build,
    inference=inference,
)
