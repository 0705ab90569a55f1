"""Resemblyzer's speaker encoder: three LSTM layers, of which the last state is the voice.

Wan, Wang, Papir and Moreno, "Generalized end-to-end loss for speaker verification", 2018. Inference
embeds the partial utterances of a recording, 1.6 s each, as `VoiceEncoder.embed_utterance` does.
Training is a step of GE2E with 4 speakers, 2 utterances each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_PARTIALS, _FRAMES, _MELS = 8, 160, 40
_SPEAKERS, _UTTERANCES = 4, 2


def build() -> nn.Module:
    """The package's encoder and weights."""
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def _mels(batch: int, dtype: torch.dtype) -> Tensor:
    """Spectrograms of tones that glide, one a row."""
    generator = torch.Generator().manual_seed(1)
    pitch = torch.randn(batch, _FRAMES, 1, generator=generator).mul(0.3).cumsum(1)
    pitch = pitch + torch.linspace(5, 35, batch).view(batch, 1, 1)
    return (torch.arange(_MELS) - pitch).square().div(-20).exp().mul(0.1).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The embeddings of partial utterances."""
    mels = _mels(_PARTIALS, dtype)
    return lambda: model(mels)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of GE2E: every utterance is to be nearest to its own speaker's mean."""
    mels = _mels(_SPEAKERS * _UTTERANCES, dtype)
    speaker = torch.arange(_SPEAKERS).repeat_interleave(_UTTERANCES)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> Tensor:
        voices = model(mels).view(_SPEAKERS, _UTTERANCES, -1)
        means = nn.functional.normalize(voices.mean(1), dim=-1)
        likeness = voices.flatten(0, 1) @ means.T
        loss = nn.functional.cross_entropy(10 * likeness - 5, speaker)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Resemblyzer",
    recurrent="LSTM(40, 256, 3 layers)",
    call="B=8, T=160, batch_first, the last state alone; trained with B=8",
    source="resemblyzer 0.1.4 and its weights",
    requires=("resemblyzer==0.1.4", "setuptools==80.10.2"),
    remark="Dense nn.LSTM is oneDNN's in eager, near the machine's peak.",
    build=build,
    inference=inference,
    training=training,
)
