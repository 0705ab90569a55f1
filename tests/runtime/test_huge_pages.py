"""Protects huge pages: large tensors are backed by them, and hold what any tensor holds."""

import sys
from pathlib import Path

import pytest
import torch

from rnnjit.runtime import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: Features of a row, and rows of a tensor that contains several huge pages.
WIDE, MANY = 1 << 10, huge_pages.LARGE // (1 << 12) * 4


def advice(tensor):
    """The kernel's flags of the mapping that holds a tensor; "hg" stands for MADV_HUGEPAGE."""
    at, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(each, 16) for each in first.split("-"))
            inside = start <= at < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("the tensor is in no mapping")


@pytest.mark.skipif(
    not (sys.platform == "linux" and SETTING.exists()) or "[never]" in SETTING.read_text(),
    reason="this system has no huge pages",
)
def test_huge_pages_are_asked_for_below_a_large_tensor():
    # Whether they are given depends on how the machine's free memory lies.
    like = torch.zeros(1, dtype=torch.float32, device="cpu")
    assert "hg" in advice(huge_pages.new_empty(like, MANY, WIDE))


@pytest.mark.parametrize("rows", [0, 1, MANY], ids=["empty", "small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_as_any(rows, dtype):
    like = torch.arange(rows * WIDE, dtype=dtype).view(rows, WIDE)
    copied = huge_pages.clone(like)
    assert torch.equal(copied, like)
    assert copied.data_ptr() != like.data_ptr() or not rows
    for fresh in (huge_pages.empty_like(like), huge_pages.new_empty(like, rows, WIDE)):
        assert (fresh.shape, fresh.dtype, fresh.stride()) == (like.shape, dtype, like.stride())
        assert torch.equal(fresh.copy_(like), like)
    assert huge_pages.advise(like) is like
    assert torch.equal(copied, like)


def test_only_large_sizes_have_the_slower_allocator():
    assert huge_pages.allocator(huge_pages.LARGE - 1) is torch.Tensor.new_empty
    assert huge_pages.allocator(huge_pages.LARGE) is huge_pages.new_empty
