"""A perceptual decision, made by a leaky rate network with noise: a Python loop against compiled.

The task is that of monkeys who see moving dots (Gold & Shadlen, The neural basis of decision
making, 2007). In a trial the network fixates, then sees two noisy streams of evidence, one of which
is a little stronger, and answers which one it was when the fixation point goes off. The trials are
generated: how much stronger one stream is, and which one, is drawn anew. Run it with

    python examples/decision.py

It trains the same `rnnjit.cells.LeakyRNN` twice from the same start on the same trials with the
same noise: in PyTorch, where each step of time is a call of the cell, and compiled. Both compute in
float64: while a network learns to integrate, its training amplifies the last digits, in which two
orders of adding up differ, and in float32 the two would part after some hundred steps. It prints
both losses, their largest difference, the time of a step of training and the speed-up, and how
often the networks are right for each strength of the evidence. It writes a plot to
examples/output/. The exit status is 1 if the two trainings differ or the task has not been learnt.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import matplotlib as mpl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rnnjit

mpl.use("Agg")
import matplotlib.pyplot as plt

DTYPE = torch.float64
BATCH = 64
LEARNING_RATE = 3e-4
#: Milliseconds: a step, the time constant of a neuron, and the parts of a trial.
DT, TAU = 20, 100
FIXATION, STIMULUS, ANSWER = 200, 1500, 300
STEPS = (FIXATION + STIMULUS + ANSWER) // DT
#: By how much one stream is stronger, as a share of the mean; and the noise of the evidence.
STRENGTHS = (0.02, 0.04, 0.08, 0.16, 0.32)
NOISE = 0.25
#: The classes of the answer.
FIXATE, LEFT, RIGHT = range(3)
#: Of the classes in the loss: a trial has many steps of fixation and few of the answer.
WEIGHTS = torch.tensor([0.1, 1.0, 1.0], dtype=DTYPE)
WANTED_AGREEMENT = 1e-3
WANTED_ACCURACY = 0.95


class Trials(NamedTuple):
    """Some trials.

    Attributes:
        inputs: the fixation point and the two streams of evidence, `[T, B, 3]`.
        targets: which answer is right in each step, `[T, B]`.
        strengths: of the evidence, positive where LEFT is stronger, `[B]`.
    """

    inputs: Tensor
    targets: Tensor
    strengths: Tensor


class Network(nn.Module):
    """Rate neurons with private noise, and an answer that is read from their rates."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        alpha = DT / TAU
        cell = rnnjit.cells.LeakyRNN(3, neurons, alpha=alpha, sigma=(2 * alpha) ** 0.5 * 0.05)
        cell.alpha.requires_grad_(False)
        with torch.no_grad():  # at the start a neuron keeps most of what it has summed up
            cell.weight_hh.copy_(0.8 * torch.eye(neurons))
        self.rnn = rnnjit.Recurrent(cell)
        self.head = nn.Linear(neurons, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the answers, `[T, B, 3]`."""
        rates, _ = self.rnn(inputs)
        return self.head(rates)


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        losses: of each step of training.
        seconds: of each step of training.
        right: the share of right answers for each of STRENGTHS.
    """

    losses: list[float]
    seconds: list[float]
    right: list[float]


def trials(strengths: Tensor, generator: torch.Generator) -> Trials:
    """Trials whose evidence has these strengths, positive for LEFT."""
    start, stop = FIXATION // DT, (FIXATION + STIMULUS) // DT
    count = len(strengths)
    inputs = torch.zeros(STEPS, count, 3, dtype=DTYPE)
    inputs[:stop, :, 0] = 1
    evidence = torch.stack([1 + strengths, 1 - strengths], dim=1) / 2
    noise = torch.randn(stop - start, count, 2, generator=generator)
    inputs[start:stop, :, 1:] = evidence + NOISE * noise
    targets = torch.full((STEPS, count), FIXATE)
    targets[stop:] = torch.where(strengths > 0, LEFT, RIGHT)
    return Trials(inputs, targets, strengths)


def batch(generator: torch.Generator) -> Trials:
    """Trials of any strength to train on."""
    which = torch.randint(len(STRENGTHS), (BATCH,), generator=generator)
    signs = 2 * torch.randint(2, (BATCH,), generator=generator) - 1
    return trials(torch.tensor(STRENGTHS)[which] * signs, generator)


def train(network: nn.Module, steps: int) -> tuple[list[float], list[float]]:
    """Train on trials that are the same every time, with noise that is; losses and seconds."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(
        [p for p in network.parameters() if p.requires_grad], lr=LEARNING_RATE
    )
    losses, seconds = [], []
    network.train()
    for _ in range(steps):
        given = batch(generator)
        start = perf_counter()
        logits = network(given.inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), given.targets.flatten(), WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds.append(perf_counter() - start)
        losses.append(loss.item())
    return losses, seconds


@torch.no_grad()
def right_answers(network: nn.Module, count: int = 400) -> list[float]:
    """The share of new trials that are answered right at the end, for each of STRENGTHS."""
    network.eval()
    generator = torch.Generator().manual_seed(2)
    shares = []
    for strength in STRENGTHS:
        strengths = strength * (1 - 2 * (torch.arange(count) % 2))
        given = trials(strengths, generator)
        answers = network(given.inputs)[-1, :, LEFT:].argmax(dim=1) + LEFT
        shares.append(float((answers == given.targets[-1]).double().mean()))
    return shares


def trained(network: nn.Module, steps: int) -> Trained:
    """Train a network and test it."""
    losses, seconds = train(network, steps)
    return Trained(losses, seconds, right_answers(network))


def milliseconds(found: Trained) -> float:
    """The median time of a step of training; the first compiles."""
    return 1e3 * median(found.seconds[1:] or found.seconds)


def plot(eager: Trained, compiled: Trained, file: Path) -> None:
    """Both loss curves, the psychometric curves, and the time of a step of training."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    left.plot(eager.losses, color="0.7", linewidth=5, label="Python loop")
    left.plot(compiled.losses, color="C0", linewidth=1.2, label="compiled")
    left.set(xlabel="step of training", ylabel="loss", title="The same training")
    left.legend()
    percents = [100 * strength for strength in STRENGTHS]
    for found, style in ((eager, {"color": "0.7", "linewidth": 5}), (compiled, {"color": "C0"})):
        middle.plot(percents, [100 * share for share in found.right], marker="o", **style)
    middle.set(xscale="log", xlabel="strength of the evidence, %", ylabel="right answers, %")
    middle.set(title="The same decisions")
    middle.set_xticks(percents, labels=[f"{percent:g}" for percent in percents])
    middle.minorticks_off()
    times = [milliseconds(eager), milliseconds(compiled)]
    bars = right.barh(["Python loop", "compiled"], times, color=["0.7", "C0"])
    right.bar_label(bars, [f" {ms:.1f} ms, {times[0] / ms:.1f}x" for ms in times])
    right.set(xlabel="a step of training, ms", xlim=(0, 1.35 * max(times)))
    right.set_title(f"{STEPS} steps of time, {BATCH} trials")
    right.invert_yaxis()
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def report(eager: Trained, compiled: Trained) -> float:
    """Print the results; return the largest difference of the losses."""
    pairs = list(zip(eager.losses, compiled.losses, strict=True))
    difference = max(abs(a - b) for a, b in pairs)
    print("  step   Python loop   compiled   (loss)")
    for step in sorted({*range(0, len(pairs), max(1, len(pairs) // 6)), len(pairs) - 1}):
        print(f"{step + 1:6}   {pairs[step][0]:11.6f}   {pairs[step][1]:8.6f}")
    print(f"\nlargest difference of the losses: {difference:.1e}\n")
    print("strength   right, Python loop   right, compiled")
    for strength, *shares in zip(STRENGTHS, eager.right, compiled.right, strict=True):
        print(f"{strength:8.0%}   {shares[0]:18.1%}   {shares[1]:15.1%}")
    times = milliseconds(eager), milliseconds(compiled)
    print(f"\na step of training: Python loop {times[0]:.1f} ms, compiled {times[1]:.1f} ms")
    print(f"speed-up: {times[0] / times[1]:.1f}x")
    return difference


def main() -> int:
    """Train both, compare, plot."""
    parser = argparse.ArgumentParser(description="A decision: a Python loop against rnnjit.")
    parser.add_argument("--steps", type=int, default=150, help="steps of training")
    parser.add_argument("--neurons", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.neurons) < 1:
        parser.error("--steps and --neurons must be 1 or more")
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = Network(arguments.neurons).to(DTYPE)
    compiled = rnnjit.compile(copy.deepcopy(network))
    results = trained(network, arguments.steps), trained(compiled, arguments.steps)
    difference = report(*results)
    plot(*results, arguments.output / "decision.png")
    print(f"\nwrote decision.png to {arguments.output}")
    learnt = min(found.right[-1] for found in results) > WANTED_ACCURACY
    return 0 if difference < WANTED_AGREEMENT and learnt else 1


if __name__ == "__main__":
    sys.exit(main())
