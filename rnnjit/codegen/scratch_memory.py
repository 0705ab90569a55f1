"""Large scratch memory, kept for the next call: fresh memory costs a page fault for each page.

The C library gives large blocks back to the system when they are freed. The next call then has the
system provide and zero every page again, which takes as long as a few steps of a layer whose
weights fill the block. What is kept has no values that matter: kernels write before they read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.runtime.huge_pages import advise

#: Bytes from which on memory is kept: smaller blocks stay with the C library anyway.
KEPT_FROM = 1 << 18
#: The most blocks that are kept, as many as calls that run at once leave, and bytes of each.
_BLOCKS, _MOST = 2, 1 << 26


class ScratchMemory:
    """Blocks that no call uses. Taking and giving is safe from several threads."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """A block of at least `size` bytes, which nobody else has."""
        try:
            block = self._free.pop()
        except IndexError:
            block = None
        if block is None or block.numel() < size:
            block = advise(torch.empty(size, dtype=torch.uint8, device="cpu"))
        return block

    def give(self, block: Tensor) -> None:
        """Keep a block for others, unless enough are kept or it is too large."""
        if len(self._free) < _BLOCKS and block.numel() <= _MOST:
            self._free.append(block)


SCRATCH = ScratchMemory()
