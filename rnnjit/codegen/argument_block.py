"""A kernel's argument block: int64 numbers, sizes and addresses, in the order of a named tuple.

Addresses point at memory that the caller owns and keeps alive until the kernel returns; 0 stands
for an absent tensor. Tensors are contiguous, in the layouts of `rnnjit.Backend`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from struct import Struct

from torch import Tensor


def argument_block(fields: Sequence[str], values: Mapping[str, int], words: int = 0) -> array[int]:
    """A block with the values that are known, zeros for the others and behind the arguments.

    Args:
        fields: names of the arguments, in their order.
        values: arguments by name.
        words: int64 numbers behind the arguments.
    """
    return array("q", [*(values.get(field, 0) for field in fields), *[0] * words])


def address_of(tensor: Tensor | None) -> int:
    """Where a tensor's elements are, 0 if there is none."""
    return 0 if tensor is None else tensor.data_ptr()


@cache
def pointers(bias: bool, directions: int) -> Struct:
    """How x, h0, y, h_n and the weights' addresses lie beside each other in a block.

    Each direction has four weights, w_ih, w_hh, b_ih and b_hh; the last two are skipped where there
    is no bias. `pack_into(block, 8 * index_of_x, x, h0, y, h_n, *weights)` writes them.
    """
    weights = "4q" if bias else "2q16x"
    return Struct("=4q" + weights * directions)
