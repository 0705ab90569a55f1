"""A letter model with int8 matrices, which reads a text as it comes.

An nn.GRU learns to predict the next letter of the reference manual that comes with Python. Then its
matrices are quantized to int8, and both models read a part of the manual that they were not trained
on, letter by letter through a `rnnjit.Stream`, as a keyboard would send it. Run it with

    python examples/quantized_streaming.py

It prints how many letters each model predicts right and how many predictions are equal, the bytes
of the layer's weights, and the time of a step. The exit status is 1 if int8 costs more than one
percent of the letters, or the text has not been learnt.
"""

from __future__ import annotations

import argparse
import sys

import text
import torch
from torch import Tensor, nn

import rnnjit
from rnnjit.bench import interleave

#: The most that int8 may cost of the letters predicted right.
WANTED_LOSS = 0.01
FLOAT32, INT8 = "float32", "int8"


class Writer(text.Writer):
    """Predicts the next letter by one nn.GRU."""

    def __init__(self, letters: int, hidden_size: int) -> None:
        super().__init__(letters, hidden_size)
        self.rnn = nn.GRU(32, hidden_size)


class Reader:
    """Reads letters one at a time, and predicts each that comes next.

    Args:
        model: a trained `Writer`, quantized or not.
    """

    def __init__(self, model: Writer) -> None:
        self._model, self._stream = model, rnnjit.Stream(model.rnn)

    @torch.no_grad()
    def read(self, number: Tensor) -> Tensor:
        """The number of the likeliest next letter after the letter `number`; both are `[1]`."""
        y = self._stream.step(self._model.embedding(number))
        return self._model.head(y).argmax(-1)


def weight_bytes(layer: nn.Module) -> int:
    """Bytes of a layer's weights; of an int8 layer with the scales and sums of its rows."""
    return sum(tensor.nbytes for tensor in layer.state_dict().values())


def main() -> int:
    """Train, quantize, read."""
    parser = argparse.ArgumentParser(description="An int8 nn.GRU, letter by letter.")
    parser.add_argument("--steps", type=int, default=200, help="stretches to train on")
    parser.add_argument("--read", type=int, default=4000, metavar="N", help="letters to read")
    parser.add_argument("--hidden-size", type=int, default=512)
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.read, arguments.hidden_size) < 1:
        parser.error("--steps, --read and --hidden-size must be 1 or more")
    data = text.load_text()
    split = len(data.numbers) - arguments.read - 1
    torch.manual_seed(0)
    model = rnnjit.compile(Writer(len(data.letters), arguments.hidden_size))
    losses, _ = text.train(model, data._replace(numbers=data.numbers[:split]), arguments.steps)
    print(f"trained: {losses[0]:.2f} bits a letter in the beginning, {losses[-1]:.2f} in the end")

    models = {FLOAT32: model.eval(), INT8: rnnjit.quantize(model).eval()}
    readers = {name: Reader(each) for name, each in models.items()}
    letters = data.numbers[split:]
    found = {
        name: torch.cat([reader.read(letter) for letter in letters[:-1].split(1)])
        for name, reader in readers.items()
    }
    right = {name: (each == letters[1:]).double().mean().item() for name, each in found.items()}
    steps = {name: lambda each=each: each.read(letters[:1]) for name, each in readers.items()}
    times = interleave(steps, rounds=5)
    for name, each in models.items():
        print(
            f"{name:>7}: {right[name]:.1%} of {arguments.read} letters right, "
            f"{weight_bytes(each.rnn):,} bytes of weights, "
            f"{times[name].median * 1e6:.0f} us a letter"
        )
    equal = (found[FLOAT32] == found[INT8]).double().mean().item()
    print(f"equal predictions: {equal:.1%}")
    commonest = (letters[1:] == letters[1:].mode().values).double().mean().item()
    print(f"the commonest letter alone: {commonest:.1%}")
    return 0 if right[INT8] > max(commonest, right[FLOAT32] - WANTED_LOSS) else 1


if __name__ == "__main__":
    sys.exit(main())
