"""DPRNN-TasNet, which separates speakers: BiLSTMs along and across short chunks of a sequence.

Luo, Chen and Yoshioka, "Dual-path RNN: efficient long sequence modeling for time-domain
single-channel speech separation", 2020, with six blocks, chunks of 100 frames and windows of 16
samples at 8 kHz.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SAMPLES = 8_000


def build() -> nn.Module:
    """The package's model with random weights."""
    from asteroid.models import DPRNNTasNet

    return DPRNNTasNet(n_src=2, sample_rate=8000)


def _sources(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    steps = torch.arange(_SAMPLES) / 8000
    tones = torch.stack([(220 * 6.28 * steps).sin(), (345 * 6.28 * steps).sin()])
    return (0.1 * tones + 0.01 * torch.randn(2, _SAMPLES, generator=generator)).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The two speakers of a second."""
    mix = _sources(dtype).sum(0, keepdim=True)
    return lambda: model(mix)


def training(model: nn.Module, dtype: torch.dtype):
    """One step, by the ratio of signal to noise."""
    sources = _sources(dtype)
    mix = sources.sum(0, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        noise = (model(mix) - sources).square().sum(-1)
        loss = 10 * (noise / sources.square().sum(-1)).log10().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="DPRNN-TasNet",
    recurrent="12 x LSTM(64, 128), bidirectional",
    call="B=1, one second: chunks of 100 steps and 22 chunks, batch_first, flatten_parameters()",
    source="asteroid 0.7.0; random weights",
    requires=("asteroid==0.7.0", "requests==2.34.2", "setuptools==80.10.2"),
    remark="Dense nn.LSTM is oneDNN's in eager; convolutions and norms take the rest.",
    build=build,
    inference=inference,
    training=training,
)
