"""A speech synthesiser: two LSTMCells with attention, which write a spectrogram frame by frame.

Shen et al., "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions", 2018.
This is the Tacotron2 of torchaudio at its default sizes. Its decoder is autoregressive in
inference; in training the true frames are its inputs.
"""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SYMBOLS, _MELS, _TOKENS, _FRAMES, _BATCH, _TRAINED = 148, 80, 40, 100, 8, 20


def build() -> nn.Module:
    """The model with as many frames as are decoded."""
    # The file alone: importing torchaudio loads a library that fits one release of torch only.
    package = find_spec("torchaudio")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("torchaudio is not installed: pip install torchaudio==2.11.1")
    file = Path(package.origin).parent / "models" / "tacotron2.py"
    spec = spec_from_file_location("tacotron2", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    # With random weights the stop token says nothing: exactly this many frames are decoded.
    return module.Tacotron2(decoder_max_step=_FRAMES, decoder_early_stopping=False)


def inference(model: nn.Module, dtype: torch.dtype):
    """The spectrogram of one text."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(_SYMBOLS, (1, _TOKENS), generator=generator)

    def call() -> Tensor:
        torch.manual_seed(2)  # the prenet drops features in inference, too
        return model.infer(text)[0]

    return call


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(_SYMBOLS, (_BATCH, _TOKENS), generator=generator)
    lengths, frames = torch.full((_BATCH,), _TOKENS), torch.full((_BATCH,), _TRAINED)
    target = torch.randn(_BATCH, _MELS, _TRAINED, generator=generator).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        torch.manual_seed(2)
        before, after, _, _ = model(text, lengths, target, frames)
        loss = (before - target).square().mean() + (after - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Tacotron 2",
    recurrent="LSTM(512, 256), bidirectional, LSTMCell(768, 1024) and LSTMCell(1536, 1024)",
    remark="LSTMCells of one row read large weights once a step, as eager does.",
    call="B=1, 100 frames decoded; training with B=8, 20 frames",
    source="torchaudio 2.11.1: its Tacotron2; random weights and text",
    requires=("torchaudio==2.11.1",),
    build=build,
    inference=inference,
    training=training,
    inexact="dropout draws other numbers in float64, in inference, too",
)
