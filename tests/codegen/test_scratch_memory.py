"""Protects scratch memory kept between calls: no two calls have the same, and it is bounded."""

import threading

import torch
from torch import nn

import rnnjit
from rnnjit.codegen import scratch_memory
from rnnjit.codegen.scratch_memory import KEPT_FROM, ScratchMemory


def test_a_block_that_was_given_back_is_taken_again():
    memory = ScratchMemory()
    block = memory.take(1000)
    memory.give(block)
    assert memory.take(500) is block


def test_blocks_that_are_in_use_are_not_taken():
    memory = ScratchMemory()
    first, second = memory.take(1000), memory.take(1000)
    assert first.data_ptr() != second.data_ptr()
    assert min(first.numel(), second.numel()) >= 1000


def test_a_small_block_gives_way_to_a_larger_one():
    memory = ScratchMemory()
    memory.give(memory.take(1000))
    large = memory.take(2000)
    assert large.numel() >= 2000
    memory.give(large)
    assert memory.take(1) is large


def test_few_blocks_are_kept_and_none_that_is_huge(monkeypatch):
    memory = ScratchMemory()
    blocks = [memory.take(1000) for _ in range(5)]
    for block in blocks:
        memory.give(block)
    kept = [memory.take(1000) for _ in range(5)]
    assert sum(any(block is one for one in blocks) for block in kept) == 2
    monkeypatch.setattr(scratch_memory, "_MOST", 999)
    memory.give(blocks[0])
    assert memory.take(1000) is not blocks[0]


def test_calls_that_run_at_once_do_not_share_it():
    torch.manual_seed(0)
    rnn = nn.RNN(250, 260).double()
    assert KEPT_FROM < 8 * 510 * 260  # of packed weights
    x = torch.randn(6, 7, 250, dtype=torch.float64)
    expected, fast, wrong = rnn(x)[0], rnnjit.compile(rnn, backend="numba"), []

    def call():
        for _ in range(30):
            y, _ = fast(x)
            y.sum().backward()
            if not torch.allclose(y, expected):
                wrong.append(y)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
