"""Measures what int8 matrices cost in accuracy, and save in memory, on the models of the examples.

    python benchmarks/int8.py [--seeds N] [-o FILE.json]

The digits of `examples/digits.py`, with nn.RNN, nn.LSTM and nn.GRU, and the letters of
`examples/text.py`: the share of test images, and of next letters, that are right.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

import msgspec
import torch
from torch import Tensor, nn

import rnnjit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import digits
import text

LAYERS = {"nn.RNN": nn.RNN, "nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU}


class Row(msgspec.Struct):
    """One model: percent right by seed, and bytes of the recurrent layers' matrices."""

    model: str
    float32: list[float]
    int8: list[float]
    float32_bytes: int
    int8_bytes: int


class OfDigits(digits.Classifier):
    """The classifier with another layer."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = layer(8, 64, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 10]` of images `[B, 8, 8]`."""
        y, _ = self.rnn(images)
        return self.head(y[:, -1])


def of_digits(name: str, seeds: int) -> Row:
    """The classifier with one kind of layer."""
    data, row = digits.load_data(), Row(f"digits, {name}", [], [], 0, 0)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = rnnjit.compile(OfDigits(LAYERS[name]))
        digits.train(model, data, 30)
        add(row, model, lambda m: m(data.test_x), data.test_y)
    return row


def of_text(seeds: int) -> Row:
    """The writer of letters, on a part of the text that it was not trained on."""
    data, row = text.load_text(), Row("text, nn.RNN of two layers", [], [], 0, 0)
    held_out = data.numbers[-64 * 512 :].view(64, 512).t()
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = rnnjit.compile(text.Writer(len(data.letters)))
        text.train(model, data._replace(numbers=data.numbers[: -64 * 512]), 400)
        add(row, model.eval(), lambda m: m(held_out[:-1], None)[0], held_out[1:])
    return row


def add(row: Row, model: nn.Module, run: object, wanted: Tensor) -> None:
    """Add a trained model to a row, as it is and quantized."""
    quantized = rnnjit.quantize(model).eval()
    with torch.no_grad():
        for each, found in ((model, row.float32), (quantized, row.int8)):
            right = run(each).argmax(-1) == wanted  # type: ignore[operator]  # a function
            found.append(100 * right.double().mean().item())
    row.float32_bytes, row.int8_bytes = matrix_bytes(model), matrix_bytes(quantized)


def matrix_bytes(model: nn.Module) -> int:
    """The bytes of the matrices of recurrent layers, with scales and sums."""
    state = model.state_dict().items()
    return sum(t.numel() * t.itemsize for name, t in state if "weight" in name and "rnn." in name)


def main() -> int:
    """Measure, print a table, and write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = [of_digits(name, arguments.seeds) for name in LAYERS] + [of_text(arguments.seeds)]
    print("| model | float32, % right | int8, % right | difference | bytes of matrices |")
    print("|---|---|---|---|---|")
    for row in rows:
        before, after = mean(row.float32), mean(row.int8)
        sizes = f"{row.float32_bytes:,} to {row.int8_bytes:,}"
        print(f"| {row.model} | {before:.2f} | {after:.2f} | {after - before:+.2f} | {sizes} |")
    if arguments.output:
        arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
