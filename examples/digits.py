"""Handwritten digits, read row by row by a recurrent network: eager against compiled.

The data are scikit-learn's bundled scans (1,797 images of 8x8 pixels); each is a sequence of 8 rows
of 8 pixels. The same classifier is trained twice from the same start on the same batches, once by
PyTorch's own nn.RNN and once compiled by rnnjit. Run it with

    python examples/digits.py

It prints both loss curves' largest difference, the accuracies and the time of one epoch on every
available backend, and writes a plot and the trained weights to examples/output/. The exit status is
1 if the two trainings or their predictions differ, or the accuracy is 95% or less.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import rnnjit
from rnnjit.bench import Timing, interleave

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH = 32
LEARNING_RATE = 5e-3
EAGER = "nn.RNN"
WANTED_ACCURACY = 0.95
WANTED_AGREEMENT = 1e-3


class Classifier(nn.Module):
    """An ordinary recurrent classifier, which knows nothing of rnnjit."""

    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.rnn = nn.RNN(input_size=8, hidden_size=hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 10]` of images `[B, 8, 8]`."""
        _, h_n = self.rnn(images)
        return self.head(h_n[-1])


class Data(NamedTuple):
    """Images `[N, 8, 8]` with pixels in [0, 1], and labels `[N]`."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: the model.
        losses: mean training loss of each epoch.
        predictions: of the test images.
        accuracy: share of the test images that are recognised.
    """

    model: nn.Module
    losses: list[float]
    predictions: Tensor
    accuracy: float


def load_data() -> Data:
    """The images, a quarter of them for the test, with every digit in proportion."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        range(len(labels)), test_size=0.25, stratify=digits.target, random_state=0
    )
    return Data(images[train], labels[train], images[test], labels[test])


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, order: Tensor
) -> float:
    """One pass over the training images in that order; their mean loss."""
    model.train()
    total = 0.0
    for batch in order.split(BATCH):
        loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(order)


def train(model: nn.Module, data: Data, epochs: int) -> Trained:
    """Train and test; the order of the batches is the same every time."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(data.train_y), generator=generator)
        losses.append(train_epoch(model, optimizer, data, order))
        schedule.step()
    model.eval()
    with torch.no_grad():
        predictions = model(data.test_x).argmax(dim=1)
    accuracy = float((predictions == data.test_y).double().mean())
    return Trained(model, losses, predictions, accuracy)


def time_epochs(data: Data, rounds: int) -> dict[str, Timing]:
    """Time of one epoch of training, by PyTorch's own nn.RNN and on every available backend."""
    models: dict[str, nn.Module] = {EAGER: Classifier()}
    for name, backend in rnnjit.backends().items():
        if not backend.missing():
            models[name] = rnnjit.compile(Classifier(), backend=name)
    order = torch.arange(len(data.train_y))

    def epoch_of(model: nn.Module):
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        return lambda: train_epoch(model, optimizer, data, order)

    return interleave({name: epoch_of(model) for name, model in models.items()}, rounds=rounds)


def plot(eager: Trained, compiled: Trained, times: dict[str, Timing], file: Path) -> None:
    """Both loss curves, and the time of one epoch on every backend."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = range(1, len(eager.losses) + 1)
    left.plot(epochs, eager.losses, color="0.7", linewidth=6, label="eager nn.RNN")
    left.plot(epochs, compiled.losses, color="C0", linewidth=1.5, label="compiled")
    left.set(xlabel="epoch", ylabel="mean training loss", yscale="log", title="The same training")
    left.legend()
    names = list(times)
    milliseconds = [times[name].median * 1e3 for name in names]
    colours = ["0.7" if name == EAGER else "C0" for name in names]
    bars = right.barh(names, milliseconds, color=colours)
    baseline = milliseconds[0]
    labels = [f" {ms:.0f} ms, {baseline / ms:.1f}x" for ms in milliseconds]
    right.bar_label(bars, labels)
    right.set(xlabel="time of one epoch, ms", title="The same epoch on every backend")
    right.set_xlim(0, 1.35 * max(milliseconds))
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def report(eager: Trained, compiled: Trained, times: dict[str, Timing], images: Tensor) -> float:
    """Print the results; return the largest difference between the loss curves."""
    pairs = list(zip(eager.losses, compiled.losses, strict=True))
    difference = max(abs(a - b) for a, b in pairs)
    print(rnnjit.explain(compiled.model, images))
    print("\nepoch   eager loss   compiled loss")
    every = max(1, len(pairs) // 6)
    for epoch in sorted({*range(0, len(pairs), every), len(pairs) - 1}):
        print(f"{epoch + 1:5}   {pairs[epoch][0]:10.6f}   {pairs[epoch][1]:13.6f}")
    equal = int((eager.predictions == compiled.predictions).sum())
    print(f"\nlargest difference between the loss curves: {difference:.1e}")
    print(f"test accuracy: eager {eager.accuracy:.1%}, compiled {compiled.accuracy:.1%}")
    print(f"equal predictions: {equal} of {len(eager.predictions)} test images\n")
    for name, timing in times.items():
        ratio = times[EAGER].median / timing.median
        print(f"{name:>8}: {timing.median * 1e3:6.1f} ms per epoch, {ratio:.2f}x eager")
    return difference


def main() -> int:
    """Train, compare, plot, save."""
    parser = argparse.ArgumentParser(description="Digits: eager nn.RNN against rnnjit.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5, help="epochs timed on each backend")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    arguments = parser.parse_args()
    if min(arguments.epochs, arguments.rounds) < 1:
        parser.error("--epochs and --rounds must be 1 or more")
    arguments.output.mkdir(parents=True, exist_ok=True)

    data = load_data()
    torch.manual_seed(0)
    model = Classifier()
    eager = train(copy.deepcopy(model), data, arguments.epochs)
    compiled = train(rnnjit.compile(copy.deepcopy(model)), data, arguments.epochs)
    times = time_epochs(data, arguments.rounds)

    difference = report(eager, compiled, times, data.train_x[:BATCH])
    plot(eager, compiled, times, arguments.output / "digits.png")
    torch.save(compiled.model.state_dict(), arguments.output / "digits.pt")
    print(f"\nwrote digits.png and digits.pt to {arguments.output}")
    agree = difference < WANTED_AGREEMENT and eager.predictions.equal(compiled.predictions)
    accurate = min(eager.accuracy, compiled.accuracy) > WANTED_ACCURACY
    return 0 if agree and accurate else 1


if __name__ == "__main__":
    sys.exit(main())
