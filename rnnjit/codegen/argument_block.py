"""A kernel's argument block: sizes and addresses as int64, in the order of a named tuple.

The caller owns the memory behind the addresses and keeps it alive until the kernel returns; 0
stands for an absent tensor. Tensors are contiguous, in the layouts of `rnnjit.Backend`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import repeat
from struct import Struct

from torch import Tensor

from rnnjit.errors import FreedInputError


def argument_block(fields: Sequence[str], values: Mapping[str, int], words: int = 0) -> array[int]:
    """Make a block with the known values; all other words are zero.

    Args:
        fields: names of the arguments, in their order.
        values: arguments by name.
        words: number of int64 words after the arguments.
    """
    block = array("q", map(values.get, fields, repeat(0)))
    block.frombytes(bytes(8 * words))
    return block


def address_of(tensor: Tensor | None) -> int:
    """The address of a tensor's elements; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


@cache
def pointers(bias: bool, directions: int) -> Struct:
    """The layout of the addresses of x, h0, y, h_n and the weights in a block.

    Each direction has four weights, w_ih, w_hh, b_ih and b_hh; the last two are skipped if there is
    no bias. `pack_into(block, 8 * index_of_x, x, h0, y, h_n, *weights)` writes them.
    """
    weights = "4q" if bias else "2q16x"
    return Struct("=4q" + weights * directions)


def check_memory(x: Tensor, before: Sequence[int], weights: Sequence[Tensor]) -> None:
    """Check that tensors whose addresses are 0 have no elements; kernels read all others.

    Args:
        x: the input.
        before: the addresses of the initial states.
        weights: the weights.

    Raises:
        FreedInputError: a tensor has elements, but its storage was freed.
    """
    if not x.numel():
        return
    given = [("x", x), *((f"weight {k} of the layer", w) for k, w in enumerate(weights))]
    for name, tensor in given:
        if tensor.numel() and not tensor.data_ptr():
            raise FreedInputError(f"{name}, of shape {list(tensor.shape)},")
    if not all(before):
        raise FreedInputError("an initial state")
