"""PyanNet of pyannote.audio, which says who speaks when: SincNet, BiLSTMs, linear layers.

Bredin and Laurent, "End-to-end speaker segmentation for overlap-aware resegmentation", 2021, at the
sizes of the released `segmentation` model: four layers, windows of 5 s at 16 kHz.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SAMPLES, _BATCH, _SPEAKERS = 80_000, 2, 3


def build() -> nn.Module:
    """The package's model with random weights."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    lstm = {"hidden_size": 128, "num_layers": 4, "bidirectional": True, "dropout": 0.5}
    model = PyanNet(sincnet={"stride": 10}, lstm=lstm)
    model.specifications = Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=5.0,
        classes=[f"speaker {index}" for index in range(_SPEAKERS)],
        permutation_invariant=True,
    )
    model.build()
    return model


def _audio(batch: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    loudness = torch.linspace(0, 20, _SAMPLES).sin().abs()
    return (0.1 * loudness * torch.randn(batch, 1, _SAMPLES, generator=generator)).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a window."""
    audio = _audio(1, dtype)
    return lambda: model(audio)


def training(model: nn.Module, dtype: torch.dtype):
    """One step."""
    audio = _audio(_BATCH, dtype)
    frames = model.num_frames(_SAMPLES)
    generator = torch.Generator().manual_seed(2)
    active = torch.randint(0, 2, (_BATCH, frames, _SPEAKERS), generator=generator).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.binary_cross_entropy(model(audio), active)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="pyannote segmentation",
    recurrent="LSTM(60, 128, 4 layers), bidirectional, dropout 0.5",
    call="B=1, a window of 5 s (T=293), batch_first; trained with B=2",
    source="pyannote.audio 4.0.7; random weights",
    requires=("pyannote.audio==4.0.7",),
    remark="Dense nn.LSTM is oneDNN's in eager; the filters of SincNet take much of the time.",
    build=build,
    inference=inference,
    training=training,
)
