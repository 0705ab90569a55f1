"""Mixed precision: the digits and the text of the other examples, under `torch.autocast`.

Parameters stay float32. Under `torch.autocast("cpu", torch.bfloat16)` the recurrent layers compute
in bfloat16: PyTorch's own by its operators, compiled ones by a backend that has it. Run it with

    python examples/autocast.py

It trains each model from several starts in three ways: compiled in float32, eager under autocast,
and compiled under autocast. It prints what each has learnt, the mean and the standard deviation
over the starts. The exit status is 1 if the compiled models under autocast learn less than eager
ones by more than that deviation.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from statistics import fmean, stdev

import digits
import text
import torch
from torch import Tensor, nn

import rnnjit


class UnderAutocast(nn.Module):
    """A model whose calls run under autocast, with results in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """What the model returns."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.model(*given)
        return found.float() if isinstance(found, Tensor) else (found[0].float(), found[1])


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled, float32": rnnjit.compile,
    "eager, autocast": UnderAutocast,
    "compiled, autocast": lambda model: UnderAutocast(rnnjit.compile(model)),
}


def accuracies(start: int, epochs: int) -> list[float]:
    """Per cent of the test images that each way recognises, from one start."""
    data = digits.load_data()
    torch.manual_seed(start)
    model = digits.Classifier()
    ways = [way(copy.deepcopy(model)) for way in WAYS.values()]
    return [100 * digits.train(each, data, epochs).accuracy for each in ways]


def gains(start: int, steps: int) -> list[float]:
    """Bits a letter below those of frequencies alone, of the last 20 steps of each way."""
    corpus = text.load_text()
    torch.manual_seed(start)
    model = text.Writer(len(corpus.letters))
    ways = [way(copy.deepcopy(model)) for way in WAYS.values()]
    return [corpus.entropy - fmean(text.train(each, corpus, steps)[0][-20:]) for each in ways]


def report(what: str, found: list[list[float]]) -> bool:
    """Print what each way has learnt; whether autocast learns compiled what it does eager."""
    print(f"\n{what}, {len(found)} starts")
    for name, values in zip(WAYS, zip(*found, strict=True), strict=True):
        every = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:>20}: {fmean(values):6.2f} +- {stdev(values):.2f}   {every}")
    _, eager, compiled = zip(*found, strict=True)
    return fmean(compiled) >= fmean(eager) - stdev(eager)


def main() -> int:
    """Train, print."""
    parser = argparse.ArgumentParser(description="Digits and text in mixed precision.")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="of the digits")
    parser.add_argument("--steps", type=int, default=200, help="of the text")
    arguments = parser.parse_args()
    if arguments.starts < 2 or min(arguments.epochs, arguments.steps) < 1:
        parser.error("--starts must be 2 or more, --epochs and --steps 1 or more")
    starts = range(arguments.starts)
    known = report(
        "digits, per cent right", [accuracies(start, arguments.epochs) for start in starts]
    )
    learnt = report(
        "text, bits a letter below its frequencies",
        [gains(start, arguments.steps) for start in starts],
    )
    return 0 if known and learnt else 1


if __name__ == "__main__":
    sys.exit(main())
