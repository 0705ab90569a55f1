"""A part-of-speech tagger: highway LSTMs in both directions over packed sentences.

Qi et al., "Universal Dependency Parsing from Scratch", 2018. This is the HighwayLSTM of stanza at
the sizes of its tagger: 200 hidden features, two layers, both directions, highway connections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnnjit.bench.models import ModelCase

_WORDS, _EMBEDDED, _HIDDEN, _TAGS, _BATCH, _LONGEST = 5000, 275, 200, 18, 50, 40


class Tagger(nn.Module):
    """Sentences `[B, T]` of some lengths to the scores of tags, a row for each word."""

    def __init__(self) -> None:
        super().__init__()
        from stanza.models.common.hlstm import HighwayLSTM

        self.embedding = nn.Embedding(_WORDS, _EMBEDDED)
        self.layers = HighwayLSTM(
            _EMBEDDED, _HIDDEN, 2, batch_first=True, bidirectional=True, highway_func=torch.tanh
        )
        self.tags = nn.Linear(2 * _HIDDEN, _TAGS)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """The scores `[words, tags]`, in the order of packed rows."""
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True)
        zeros = packed.data.new_zeros(4, len(lengths), _HIDDEN)
        output, _ = self.layers(packed, lengths, hx=(zeros, zeros))
        return self.tags(output.data)


def _sentences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, _LONGEST + 1, (_BATCH,), generator=generator)
    words = torch.randint(_WORDS, (_BATCH, _LONGEST), generator=generator)
    lengths = lengths.sort(descending=True).values
    return words[:, : int(lengths[0])], lengths


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    words, lengths = _sentences()
    return lambda: model(words, lengths)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    words, lengths = _sentences()
    count = int(lengths.sum())
    tags = torch.randint(_TAGS, (count,), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def step() -> Tensor:
        loss = nn.functional.cross_entropy(model(words, lengths), tags)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="Stanza tagger",
    recurrent="2 x LSTM(200), bidirectional, packed, highway connections",
    remark="Packed nn.LSTM; the highway gates around it are eager's.",
    call="B=50 sentences of 4 to 40 words, packed",
    source="stanza 1.15.0: its HighwayLSTM; random weights and words",
    requires=("stanza==1.15.0",),
    build=Tagger,
    inference=inference,
    training=training,
)
