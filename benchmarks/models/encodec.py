"""EnCodec, a neural codec: convolutions around two LSTM layers, in the encoder and in the decoder.

Défossez, Copet, Synnaeve and Adi, "High fidelity neural audio compression", 2022, the causal model
for 24 kHz. The quantizer between them is left out: it is not trained without its losses, and its
codes are integers, which one rounding error changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_RATE = 24_000


def build() -> nn.Module:
    """The package's model with random weights."""
    from encodec import EncodecModel

    return EncodecModel.encodec_model_24khz(pretrained=False)


def _audio(batch: int, seconds: float, dtype: torch.dtype) -> Tensor:
    samples = int(_RATE * seconds)
    noise = torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(1))
    return (0.1 * torch.linspace(0, 20, samples).sin() * noise).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """A second of audio there and back."""
    audio = _audio(1, 1.0, dtype)

    def call() -> tuple[Tensor, Tensor]:
        latent = model.encoder(audio)
        return latent, model.decoder(latent)

    return call


def training(model: nn.Module, dtype: torch.dtype):
    """One step of reconstruction."""
    audio = _audio(1, 1.0, dtype)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, (0.5, 0.9))

    def step() -> Tensor:
        rebuilt = model.decoder(model.encoder(audio))
        loss = (rebuilt[..., : audio.shape[-1]] - audio).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="EnCodec 24 kHz",
    recurrent="2 x LSTM(512, 512, 2 layers)",
    call="B=1, one second (T=75), permuted from convolutions",
    source="encodec 0.1.1; random weights",
    requires=("encodec==0.1.1",),
    remark="Convolutions take most of the time; the LSTM reads transposed strides as they are.",
    build=build,
    inference=inference,
    training=training,
)
