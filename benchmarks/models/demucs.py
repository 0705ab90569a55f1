"""Demucs v2, which separates music: a convolutional encoder and decoder around a wide BiLSTM.

Défossez, Usunier, Bottou and Bach, "Music source separation in the waveform domain", 2019, at 48
channels, where the two layers of the LSTM have 1536 features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SECONDS = 1


def build() -> nn.Module:
    """The package's class with the structure of v2, with random weights."""
    from demucs.demucs import Demucs

    sources = ["drums", "bass", "other", "vocals"]
    return Demucs(sources, channels=48, lstm_layers=2, dconv_mode=0, norm_starts=99, gelu=False)


def _mix(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (0.1 * torch.randn(1, 2, 44_100 * _SECONDS, generator=generator)).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The four sources of a second."""
    mix = _mix(dtype)
    return lambda: model(mix)


CASE = ModelCase(
    name="Demucs v2",
    recurrent="LSTM(1536, 1536, 2 layers), bidirectional",
    call="B=1, a second (T=22)",
    source="demucs 4.1.0; random weights",
    requires=("demucs==4.1.0",),
    remark="Large dense nn.LSTM is oneDNN's in eager; convolutions take the rest.",
    build=build,
    inference=inference,
)
