"""DeepFilterNet 3, which removes noise from speech: convolutions on a spectrum, five GRU layers.

Schröter, Rosenkranz, Escalante-B. and Maier, "DeepFilterNet: perceptually motivated real-time
speech enhancement", 2023, at the package's default sizes: frames of 10 ms at 48 kHz.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_BINS, _BANDS, _FILTERED = 481, 32, 96
_FRAMES, _BATCH = 300, 2


def build() -> nn.Module:
    """The package's model with random weights."""
    from df.config import config
    from df.deepfilternet3 import init_model

    config.use_defaults(allow_reload=True)
    return init_model()


def _features(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.randn(batch, 1, _FRAMES, _BINS, 2, generator=generator)
    bands = torch.randn(batch, 1, _FRAMES, _BANDS, generator=generator)
    return spectrum.to(dtype), bands.to(dtype), spectrum[..., :_FILTERED, :].to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """Three seconds of speech."""
    features = _features(1, dtype)
    return lambda: model(*[feature.clone() for feature in features])


def training(model: nn.Module, dtype: torch.dtype):
    """One step."""
    features = _features(_BATCH, dtype)
    clean = 0.5 * features[0]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> Tensor:
        enhanced, *_ = model(*[feature.clone() for feature in features])
        loss = nn.functional.mse_loss(enhanced, clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="DeepFilterNet 3",
    recurrent="GRU(256, 256), 1 + 1 + 3 layers",
    call="B=1, T=300, batch_first; trained with B=2",
    source="deepfilternet 0.5.6; random weights",
    requires=("deepfilternet==0.5.6", "torchaudio==2.2.2"),
    no_deps=("torchaudio",),
    remark="nn.GRU, which eager computes step by step: the gain is the layers'.",
    build=build,
    inference=inference,
    training=training,
)
