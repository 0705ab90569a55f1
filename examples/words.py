"""Words that were run together, told apart again by a bidirectional nn.LSTM.

The text is the reference manual that comes with Python (`pydoc_data.topics`, in English). Every
line loses its spaces, and the network reads the letters that are left, in both directions, and says
after which of them a space was. Lines differ in length: a batch is a PackedSequence. Every eighth
topic of the manual is held out for the test. Run it with

    python examples/words.py

It trains the same model twice from the same start on the same batches, on PyTorch's own nn.LSTM and
compiled. It prints both losses, their largest difference, the times, how well the spaces of the
held-out topics are found, and a line as it was read and as it was written. The exit status is 1 if
the two trainings differ or the spaces have not been learnt.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pydoc_data.topics import topics
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnjit

BATCH = 32
LEARNING_RATE = 1e-2
HELD_OUT = 8
WANTED_AGREEMENT = 1e-2
#: F1 of the held-out lines; a network that has not learnt sets no space, and has 0.
WANTED_SCORE = 0.6


class Line(NamedTuple):
    """A line without its spaces.

    Attributes:
        letters: their numbers, `[length]`.
        spaces: 1 where a space followed, else 0, `[length]`.
    """

    letters: Tensor
    spaces: Tensor


class Data(NamedTuple):
    """The lines to train on and those held out, and every distinct letter in them."""

    train: list[Line]
    test: list[Line]
    alphabet: str


class Scores(NamedTuple):
    """Of the spaces: what share of those set is right, and what share of the right ones is set."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


class Segmenter(nn.Module):
    """An ordinary model, which knows nothing of rnnjit."""

    def __init__(self, letters: int, hidden_size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 24)
        self.rnn = nn.LSTM(24, hidden_size, bidirectional=True)
        self.head = nn.Linear(2 * hidden_size, 1)

    def forward(self, letters: PackedSequence) -> Tensor:
        """A logit for every row of the packed letters: whether a space follows."""
        y, _ = self.rnn(letters._replace(data=self.embedding(letters.data)))
        return self.head(y.data).squeeze(1)


def load_data() -> Data:
    """The lines of prose of Python's reference manual, topic after topic."""
    names = sorted(topics)
    parts: tuple[list[str], list[str]] = ([], [])
    for place, name in enumerate(names):
        lines = (" ".join(line.split()) for line in topics[name].splitlines())
        parts[place % HELD_OUT == 0].extend(line for line in lines if line.count(" ") >= 4)
    alphabet = "".join(sorted(set().union(*parts[0], *parts[1]) - {" "}))
    places = {letter: place for place, letter in enumerate(alphabet)}
    train, test = ([as_line(line, places) for line in part] for part in parts)
    return Data(train, test, alphabet)


def as_line(text: str, places: dict[str, int]) -> Line:
    """A line of text, its words one space apart, as numbers."""
    letters = torch.tensor([places[letter] for letter in text if letter != " "])
    ends = torch.tensor([len(word) for word in text.split()]).cumsum(0) - 1
    spaces = torch.zeros(len(letters)).index_fill(0, ends[:-1], 1.0)
    return Line(letters, spaces)


def packed(lines: list[Line]) -> tuple[PackedSequence, Tensor]:
    """A batch: the letters, and whether a space follows, in the order of their rows."""
    letters = pack_sequence([line.letters for line in lines], enforce_sorted=False)
    spaces = pack_sequence([line.spaces for line in lines], enforce_sorted=False)
    return letters, spaces.data


def train(model: nn.Module, data: Data, steps: int) -> tuple[list[float], float]:
    """Train on some batches, the same every time; their losses, and seconds per batch."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(len(data.train), (steps, BATCH), generator=generator).tolist()
    batches = [packed([data.train[place] for place in places]) for places in order]
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses, start = [], perf_counter()
    for letters, spaces in batches:
        loss = F.binary_cross_entropy_with_logits(model(letters), spaces)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, (perf_counter() - start) / steps


@torch.no_grad()
def score(model: nn.Module, lines: list[Line]) -> Scores:
    """How well a model finds the spaces of some lines."""
    letters, spaces = packed(lines)
    found, right = model(letters) > 0, spaces > 0
    both = int((found & right).sum())
    return Scores(both / max(int(found.sum()), 1), both / int(right.sum()))


@torch.no_grad()
def written(model: nn.Module, data: Data, line: Line) -> tuple[str, str]:
    """A line without spaces, and with those that a model finds."""
    read = [data.alphabet[number] for number in line.letters.tolist()]
    found = (model(packed([line])[0]) > 0).tolist()
    return "".join(read), "".join(a + " " * space for a, space in zip(read, found, strict=True))


def main() -> int:
    """Train both, compare, test."""
    parser = argparse.ArgumentParser(description="Words told apart: eager nn.LSTM and rnnjit.")
    parser.add_argument("--steps", type=int, default=300, help="batches to train on")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be 1 or more")
    data = load_data()
    torch.manual_seed(0)
    model = Segmenter(len(data.alphabet))
    compiled = rnnjit.compile(copy.deepcopy(model))
    eager_losses, eager_time = train(model, data, arguments.steps)
    losses, time = train(compiled, data, arguments.steps)

    pairs = list(zip(eager_losses, losses, strict=True))
    difference = max(abs(a - b) for a, b in pairs)
    print(f"{len(data.train)} lines to train on, {len(data.test)} held out")
    print("  step   eager   compiled   (mean loss of a letter)")
    for step in sorted({*range(0, len(pairs), max(1, len(pairs) // 6)), len(pairs) - 1}):
        print(f"{step + 1:6}   {pairs[step][0]:.4f}   {pairs[step][1]:8.4f}")
    print(f"\nlargest difference: {difference:.1e}")
    print(f"a step of training: eager {eager_time * 1e3:.1f} ms, compiled {time * 1e3:.1f} ms")
    scores = [score(each, data.test) for each in (model, compiled)]
    for name, found in zip(("eager", "compiled"), scores, strict=True):
        print(
            f"spaces of the held-out lines, {name}: precision {found.precision:.1%}, "
            f"recall {found.recall:.1%}, F1 {found.f1:.1%}"
        )
    print("\n{}\n{}".format(*written(compiled, data, data.test[len(data.test) // 2])))
    learnt = min(found.f1 for found in scores) > WANTED_SCORE
    return 0 if difference < WANTED_AGREEMENT and learnt else 1


if __name__ == "__main__":
    sys.exit(main())
