"""Hybrid Demucs (v3), which separates music: small BiLSTMs in the residual branches of its encoder.

Défossez, "Hybrid spectrogram and waveform source separation", 2021, the time-domain class with
BiLSTMs of 192 and 384 features in its two inner layers, over frames of 200 steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SECONDS = 2


def build() -> nn.Module:
    """The package's class with random weights."""
    from demucs.hdemucs import HDemucs

    return HDemucs(["drums", "bass", "other", "vocals"], channels=48)


def _mix(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (0.1 * torch.randn(1, 2, 44_100 * _SECONDS, generator=generator)).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The four sources of two seconds."""
    mix = _mix(dtype)
    return lambda: model(mix)


CASE = ModelCase(
    name="Hybrid Demucs v3",
    recurrent="LSTM, bidirectional, 2 layers, in residual branches",
    call="B=1, two seconds",
    source="demucs 4.1.0; random weights",
    requires=("demucs==4.1.0",),
    remark="Convolutions take nearly all of the time.",
    build=build,
    inference=inference,
)
