"""Calls of ever new shapes by ever new modules, and the memory that they leave behind.

    python soak.py BACKEND CALLS

After each twentieth of the calls it writes how many there were, and the resident memory in bytes.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def calls(dice: random.Random, backend: str) -> Iterator[Callable[[], object]]:
    """Calls of one module after the other, two of each kind."""
    while True:
        I, H = dice.randint(1, 40), dice.randint(1, 40)
        options = {"bias": dice.random() < 0.7, "bidirectional": dice.random() < 0.3}
        module = rnnjit.compile(nn.RNN(I, H, dice.randint(1, 2), **options), backend=backend)
        ways = [partial(without_gradients, module, dice), partial(dense, module, dice)]
        ways.append(partial(packed, module, dice))
        if not module.bidirectional:
            B = dice.randint(1, 9)
            ways.append(partial(rnnjit.Stream(module, B).step, torch.randn(B, I)))
        for _ in range(2):
            yield from ways


def without_gradients(module: nn.Module, dice: random.Random) -> None:
    with torch.no_grad():
        module(torch.randn(dice.randint(1, 8), dice.randint(1, 8), module.input_size))


def dense(module: nn.Module, dice: random.Random) -> None:
    y, h_n = module(torch.randn(dice.randint(1, 8), dice.randint(1, 8), module.input_size))
    (y.sum() + h_n.sum()).backward()


def packed(module: nn.Module, dice: random.Random) -> None:
    sizes = sorted((dice.randint(1, 8) for _ in range(dice.randint(1, 6))), reverse=True)
    x = torch.randn(sum(sizes), module.input_size)
    y, h_n = module(PackedSequence(x, torch.tensor(sizes)))
    (y.data.sum() + h_n.sum()).backward()


def main(backend: str, count: int) -> None:
    torch.manual_seed(0)
    for number, call in enumerate(calls(random.Random(0), backend), start=1):
        call()
        if number % (count // 20) == 0:
            sys.stdout.write(f"{number} {resident()}\n")
        if number == count:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
