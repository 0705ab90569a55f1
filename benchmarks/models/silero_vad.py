"""Silero VAD, which finds speech in a stream: an STFT, four convolutions and an LSTM cell.

The package `silero-vad` ships TorchScript, which runs without Python and so cannot be compiled. The
module is rebuilt from the package's own description of the model for another framework, and takes
the weights of its TorchScript. Importing the package limits torch to one thread.

A stream is a chunk of 512 samples a call (32 ms), with 64 samples of context. Fine-tuning runs the
cell chunk after chunk, too, over a batch of two seconds each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

CHUNK, CONTEXT = 512, 64
_STREAMED = 32
_BATCH, _CHUNKS = 32, 62
_FEATURES = 129

State = tuple[Tensor, Tensor]


class Vad(nn.Module):
    """Chunks with their context [N, 576] to the probability of speech in each, at 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 2 * _FEATURES, 256, 128, bias=False).requires_grad_(False)
        widths = [(_FEATURES, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)]
        self.encoder = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride, padding=1) for before, after, stride in widths
        )
        self.rnn = nn.LSTMCell(128, 128)
        self.head = nn.Conv1d(128, 1, 1)

    def features(self, chunks: Tensor) -> Tensor:
        """[N, 576] to [N, 128]."""
        padded = nn.functional.pad(chunks, (0, CONTEXT), "reflect").unsqueeze(1)
        real, imaginary = self.stft(padded).split(_FEATURES, 1)
        x = (real**2 + imaginary**2).sqrt()
        for layer in self.encoder:
            x = layer(x).relu()
        return x.squeeze(-1)

    def probability(self, h: Tensor) -> Tensor:
        """[N, 128] to [N, 1]."""
        return self.head(h.relu().unsqueeze(-1)).sigmoid().squeeze(-1)

    def forward(self, chunks: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The probabilities of one chunk of each stream [N, 1], and the next state."""
        h, c = self.rnn(self.features(chunks), state)
        return self.probability(h), (h, c)


def build() -> Vad:
    """The model with the package's weights."""
    from silero_vad import load_silero_vad

    given = load_silero_vad().state_dict()
    model = Vad()
    with torch.no_grad():
        model.stft.weight.copy_(given["_model.stft.forward_basis_buffer"])
        for index, layer in enumerate(model.encoder):
            layer.weight.copy_(given[f"_model.encoder.{index}.reparam_conv.weight"])
            layer.bias.copy_(given[f"_model.encoder.{index}.reparam_conv.bias"])
        for name, parameter in model.rnn.named_parameters():
            parameter.copy_(given[f"_model.decoder.rnn.{name}"])
        model.head.weight.copy_(given["_model.decoder.decoder.2.weight"])
        model.head.bias.copy_(given["_model.decoder.decoder.2.bias"])
    return model


def chunks_of(streams: int, count: int) -> Tensor:
    """Noise that swells and fades, as chunks with their context [count, streams, 576]."""
    samples = CONTEXT + count * CHUNK
    generator = torch.Generator().manual_seed(1)
    loudness = torch.linspace(0, 12, samples).sin().abs()
    audio = 0.1 * loudness * torch.randn(streams, samples, generator=generator)
    return audio.unfold(1, CONTEXT + CHUNK, CHUNK).transpose(0, 1).contiguous()


def inference(model: nn.Module, dtype: torch.dtype):
    """One second of a stream, a chunk a call."""
    chunks = chunks_of(1, _STREAMED).to(dtype)

    def stream() -> list[Tensor]:
        state, found = None, []
        for chunk in chunks:
            probability, state = model(chunk, state)
            found.append(probability)
        return found

    return stream


def training(model: nn.Module, dtype: torch.dtype):
    """One step of fine-tuning."""
    chunks = chunks_of(_BATCH, _CHUNKS).to(dtype)
    generator = torch.Generator().manual_seed(2)
    speech = torch.randint(0, 2, (_CHUNKS, _BATCH, 1), generator=generator).to(dtype)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 1e-4)

    def step() -> Tensor:
        state, found = None, []
        for chunk in chunks:
            probability, state = model(chunk, state)
            found.append(probability)
        loss = nn.functional.binary_cross_entropy(torch.stack(found), speech)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Silero VAD, a stream",
    recurrent="LSTMCell(128, 128)",
    call="B=1, a chunk a call, state carried; trained with B=32, 62 chunks",
    source="rebuilt from the description in silero-vad 6.2.3; its weights",
    requires=("silero-vad==6.2.3",),
    remark="Convolutions and the calls around them take nearly all of the time.",
    build=build,
    inference=inference,
    training=training,
)
