"""A text, learnt letter by letter with truncated backpropagation through time.

The text is the reference manual that comes with Python (`pydoc_data.topics`, in English). It is cut
into parallel streams that form a batch and are read one stretch of letters at a time. The state is
carried from stretch to stretch; its autograd history is not:

    y, h = rnn(letters, h.detach())

so that a gradient reaches back to the beginning of its stretch, and memory stays bounded however
long the text is. Run it with

    python examples/text.py

It trains the same model twice, on PyTorch's own nn.RNN and compiled. It prints both losses in bits
per letter, their largest difference, the time of a step, and a text that the trained network
writes, letter by letter through a `rnnjit.Stream`. The exit status is 1 if the two trainings differ
or the text has not been learnt.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pydoc_data.topics import topics
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rnnjit

STREAMS, STRETCH = 32, 64
LEARNING_RATE = 3e-3
WANTED_AGREEMENT = 1e-2
#: The beginning of the text that the trained network writes.
SEED = "The "


class Text(NamedTuple):
    """A text as numbers.

    Attributes:
        letters: every distinct one; its index is its number.
        numbers: the text, `[length]`.
    """

    letters: str
    numbers: Tensor

    @property
    def entropy(self) -> float:
        """Bits per letter by the frequencies of letters alone."""
        shares = self.numbers.bincount(minlength=len(self.letters)) / len(self.numbers)
        return float(-(shares * shares.log2().nan_to_num(neginf=0)).sum())


class Writer(nn.Module):
    """Predicts the next letter: an ordinary model, which knows nothing of rnnjit."""

    def __init__(self, letters: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 32)
        self.rnn = nn.RNN(32, hidden_size, num_layers=2)
        self.head = nn.Linear(hidden_size, letters)

    def forward(self, numbers: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits `[T, B, letters]` after letters `[T, B]`, and the state to go on from."""
        y, h = self.rnn(self.embedding(numbers), h)
        return self.head(y), h


def load_text() -> Text:
    """Python's reference manual, topic after topic."""
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = "".join(sorted(set(text)))
    places = {letter: place for place, letter in enumerate(letters)}
    return Text(letters, torch.tensor([places[letter] for letter in text]))


def train(model: nn.Module, text: Text, steps: int) -> tuple[list[float], float]:
    """Train on some stretches; the loss of each in bits per letter, and seconds per stretch."""
    streams = text.numbers[: len(text.numbers) // STREAMS * STREAMS].view(STREAMS, -1).t()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses, h, start = [], None, perf_counter()
    for step in range(steps):
        at = step * STRETCH % (len(streams) - STRETCH - 1)
        letters = streams[at : at + STRETCH + 1]
        logits, h = model(letters[:-1], h)
        loss = F.cross_entropy(logits.flatten(0, 1), letters[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        h = h.detach()
        losses.append(loss.item() / math.log(2))
    return losses, (perf_counter() - start) / steps


def write(model: Writer, text: Text, length: int) -> str:
    """A text that the model writes, each letter drawn from its distribution."""
    generator = torch.Generator().manual_seed(0)
    stream, written = rnnjit.Stream(model.rnn), SEED
    with torch.no_grad():
        for place in range(len(SEED) + length - 1):
            number = torch.tensor([text.letters.index(written[place])])
            logits = model.head(stream.step(model.embedding(number)))
            if place >= len(SEED) - 1:
                drawn = torch.multinomial(logits[0].softmax(0), 1, generator=generator)
                written += text.letters[int(drawn)]
    return written


def main() -> int:
    """Train both, compare, write."""
    parser = argparse.ArgumentParser(description="Truncated backpropagation: eager and rnnjit.")
    parser.add_argument("--steps", type=int, default=200, help="stretches to train on")
    parser.add_argument("--write", type=int, default=200, metavar="N", help="letters to write")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.write) < 1:
        parser.error("--steps and --write must be 1 or more")
    text = load_text()
    torch.manual_seed(0)
    model = Writer(len(text.letters))
    compiled = rnnjit.compile(copy.deepcopy(model))
    eager_losses, eager_time = train(model, text, arguments.steps)
    losses, time = train(compiled, text, arguments.steps)

    pairs = list(zip(eager_losses, losses, strict=True))
    difference = max(abs(a - b) for a, b in pairs)
    print("  step   eager   compiled   (bits a letter)")
    for step in sorted({*range(0, len(pairs), max(1, len(pairs) // 6)), len(pairs) - 1}):
        print(f"{step + 1:6}   {pairs[step][0]:5.3f}   {pairs[step][1]:8.3f}")
    print(f"\nlargest difference: {difference:.1e} bits")
    print(f"letters by their frequencies alone: {text.entropy:.3f} bits")
    print(f"a step of training: eager {eager_time * 1e3:.1f} ms, compiled {time * 1e3:.1f} ms")
    print(f"\n{write(compiled, text, arguments.write)}")
    learnt = max(eager_losses[-1], losses[-1]) < text.entropy
    return 0 if difference < WANTED_AGREEMENT and learnt else 1


if __name__ == "__main__":
    sys.exit(main())
