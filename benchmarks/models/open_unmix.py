"""Open-Unmix, which separates music: three bidirectional LSTM layers on a spectrogram.

Stöter, Uhlich, Liutkus and Mitsufuji, "Open-Unmix: a reference implementation for music source
separation", 2019, at the sizes of `umxhq`: one target, stereo, bins up to 16 kHz.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_BINS, _USED = 2049, 1487
#: Frames of six seconds, of which the package trains on batches of 16.
_FRAMES, _BATCH = 255, 4


def build() -> nn.Module:
    """The package's model with random weights."""
    from openunmix.model import OpenUnmix

    return OpenUnmix(nb_bins=_BINS, nb_channels=2, hidden_size=512, max_bin=_USED)


def _spectrogram(batch: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, _BINS, _FRAMES, generator=generator).abs().to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The target's spectrogram."""
    mix = _spectrogram(1, dtype)
    return lambda: model(mix)


def training(model: nn.Module, dtype: torch.dtype):
    """One step."""
    mix = _spectrogram(_BATCH, dtype)
    target = 0.5 * mix.roll(1, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-5)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(mix), target)
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Open-Unmix",
    recurrent="LSTM(512, 256, 3 layers), bidirectional, dropout 0.4",
    call="B=1, T=255; trained with B=4",
    source="openunmix 1.3.0; random weights",
    requires=("openunmix==1.3.0",),
    remark="Dense nn.LSTM is oneDNN's in eager, near the machine's peak.",
    build=build,
    inference=inference,
    training=training,
)
