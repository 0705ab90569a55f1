"""Handwritten digits on several processes: a compiled recurrent classifier, trained data-parallel.

The classifier and the data are those of digits.py. Every process, a rank, has a copy of the model
and reads its own share of each batch. DistributedDataParallel averages the gradients over gloo, so
that all copies take the same steps. Run it on one machine with

    torchrun --standalone --nproc-per-node 2 examples/ddp_digits.py

The exit status is 1 unless the ranks end with the same weights, bit for bit, the loss curve is that
of one process that trains PyTorch's own nn.RNN on whole batches, and the accuracy is above 95%.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist
from digits import (
    BATCH,
    LEARNING_RATE,
    WANTED_ACCURACY,
    WANTED_AGREEMENT,
    Classifier,
    Data,
    load_data,
    train_epoch,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rnnjit


def train_together(model: nn.Module, data: Data, epochs: int) -> list[float]:
    """Train this rank's copy on its shares; the mean loss of each epoch over all ranks."""
    images = TensorDataset(data.train_x, data.train_y)
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(
        images, drop_last=True
    )
    loader = DataLoader(images, batch_size=BATCH // dist.get_world_size(), sampler=sampler)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(())
        for x, labels in loader:
            loss = F.cross_entropy(parallel(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
        schedule.step()
        dist.all_reduce(total)
        losses.append(float(total) / sampler.total_size)
    return losses


def train_alone(model: nn.Module, data: Data, epochs: int) -> list[float]:
    """The same in one process: its batches are the ranks' shares put together."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    count = len(data.train_y) // dist.get_world_size() * dist.get_world_size()
    losses = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch)  # as DistributedSampler draws
        order = torch.randperm(len(data.train_y), generator=generator)[:count]
        losses.append(train_epoch(model, optimizer, data, order))
        schedule.step()
    return losses


def equal_on_all_ranks(model: nn.Module) -> bool:
    """Whether every rank has the same weights, to the bit."""
    mine = nn.utils.parameters_to_vector(model.parameters()).detach()
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    return all(torch.equal(mine, other) for other in all_of_them)


def accuracy_of(model: nn.Module, data: Data) -> float:
    """Share of the test images that are recognised."""
    model.eval()
    with torch.no_grad():
        return float((model(data.test_x).argmax(dim=1) == data.test_y).double().mean())


def run(epochs: int) -> bool:
    """Train both ways and compare; true on every rank if all checks pass."""
    data = load_data()
    torch.manual_seed(0)
    eager = Classifier()
    torch.manual_seed(0)
    fast = rnnjit.compile(Classifier())
    curve = train_together(fast, data, epochs)
    equal = equal_on_all_ranks(fast)
    accuracy = accuracy_of(fast, data)
    alone = train_alone(eager, data, epochs)
    difference = max(abs(a - b) for a, b in zip(curve, alone, strict=True))
    if dist.get_rank() == 0:
        ranks = dist.get_world_size()
        print(f"{ranks} ranks, {BATCH // ranks} of {BATCH} images of a batch each")
        print(f"loss: {curve[0]:.4f} in the first epoch, {curve[-1]:.4f} in the last")
        print(f"weights equal on all ranks: {'yes' if equal else 'no'}")
        print(f"largest difference from the loss curve of one eager process: {difference:.1e}")
        print(f"test accuracy: {accuracy:.1%}")
    return equal and difference < WANTED_AGREEMENT and accuracy > WANTED_ACCURACY


def main() -> int:
    """Join the other ranks, train, compare."""
    parser = argparse.ArgumentParser(description="Digits, data-parallel over gloo.")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be 1 or more")
    if not dist.is_torchelastic_launched():
        parser.error(
            "run it with torchrun: "
            f"torchrun --standalone --nproc-per-node 2 {os.path.relpath(__file__)}"
        )
    torch.set_num_threads(1)  # the processes share the machine's cores
    dist.init_process_group("gloo")
    try:
        if BATCH % dist.get_world_size():
            parser.error(f"--nproc-per-node must divide {BATCH}, the size of a batch")
        return 0 if run(arguments.epochs) else 1
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
