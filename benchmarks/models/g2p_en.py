"""Letters to phonemes: a GRU over the letters, and a GRUCell that writes phonemes one by one.

The package g2p-en computes in numpy; this is its network in PyTorch, with its weights. Park and
Kim, g2pE, 2019: embeddings of 256, 256 hidden features, 29 graphemes, 74 phonemes.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_GRAPHEMES, _PHONEMES, _EMBEDDED, _HIDDEN = 29, 74, 256, 256
_FIRST_LETTER, _START, _END, _MOST = 3, 2, 3, 20
_WORDS = ("activationist", "recurrence", "kernel", "phoneme", "gate", "transliterated", "zeitgeist")


class G2p(nn.Module):
    """A word's graphemes `[1, T]` to its phonemes."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_emb = nn.Embedding(_GRAPHEMES, _EMBEDDED)
        self.encoder = nn.GRU(_EMBEDDED, _HIDDEN, batch_first=True)
        self.dec_emb = nn.Embedding(_PHONEMES, _EMBEDDED)
        self.decoder = nn.GRUCell(_EMBEDDED, _HIDDEN)
        self.fc = nn.Linear(_HIDDEN, _PHONEMES)

    def scores(self, graphemes: Tensor, phonemes: Tensor) -> Tensor:
        """The scores of the next phonemes `[T, phonemes]`, given the phonemes `[T]` before."""
        h = self.encoder(self.enc_emb(graphemes))[1][0]
        found = []
        for x in self.dec_emb(phonemes):
            h = self.decoder(x[None], h)
            found.append(self.fc(h))
        return torch.cat(found)

    def forward(self, graphemes: Tensor) -> tuple[list[int], Tensor]:
        """The phonemes, and their scores `[T, phonemes]`."""
        h = self.encoder(self.enc_emb(graphemes))[1][0]
        phonemes, scores = [_START], []
        while len(phonemes) <= _MOST:
            x = self.dec_emb.weight[phonemes[-1]]
            h = self.decoder(x[None], h)
            scores.append(self.fc(h))
            best = int(scores[-1].argmax())
            if best == _END:
                break
            phonemes.append(best)
        return phonemes[1:], torch.cat(scores)


def build() -> nn.Module:
    """The network with the weights of the package."""
    import numpy as np

    # Importing the package would download NLTK's corpora, which the network does not need.
    spec = find_spec("g2p_en")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("g2p-en is not installed: pip install g2p-en==2.1.0")
    stored = np.load(Path(spec.origin).with_name("checkpoint20.npz"))
    model = G2p()
    places = {"enc": (model.encoder, "_l0"), "dec": (model.decoder, "")}
    with torch.no_grad():
        for prefix, (module, suffix) in places.items():
            for short, name in (("w", "weight"), ("b", "bias")):
                for side in ("ih", "hh"):
                    weight = getattr(module, f"{name}_{side}{suffix}")
                    weight.copy_(torch.from_numpy(stored[f"{prefix}_{short}_{side}"]))
        model.enc_emb.weight.copy_(torch.from_numpy(stored["enc_emb"]))
        model.dec_emb.weight.copy_(torch.from_numpy(stored["dec_emb"]))
        model.fc.weight.copy_(torch.from_numpy(stored["fc_w"]))
        model.fc.bias.copy_(torch.from_numpy(stored["fc_b"]))
    return model


def _graphemes(word: str) -> Tensor:
    letters = [ord(letter) - ord("a") + _FIRST_LETTER for letter in word]
    return torch.tensor([[*letters, 2]])


def inference(model: nn.Module, dtype: torch.dtype):
    """The phonemes of some words, each letter the best one."""
    words = [_graphemes(word) for word in _WORDS]
    return lambda: [model(word)[1] for word in words]


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam for each word, with random phonemes."""
    generator = torch.Generator().manual_seed(1)
    words = [_graphemes(word) for word in _WORDS]
    spoken = [torch.randint(4, _PHONEMES, (word.shape[1],), generator=generator) for word in words]
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> Tensor:
        losses = []
        for word, phonemes in zip(words, spoken, strict=True):
            before = torch.cat([torch.tensor([_START]), phonemes[:-1]])
            loss = nn.functional.cross_entropy(model.scores(word, before), phonemes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    return step


CASE = ModelCase(
    name="g2p-en",
    recurrent="GRU(256, 256) and GRUCell(256, 256)",
    remark="One word at a time: a step a call.",
    call="B=1, 7 words of 4 to 14 letters, decoded phoneme by phoneme",
    source="g2p-en 2.1.0: its weights, its numpy network written in PyTorch",
    requires=("g2p-en==2.1.0",),
    build=build,
    inference=inference,
    training=training,
)
