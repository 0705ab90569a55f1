"""Checks the parts of a PackedSequence: its batch sizes and its permutations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnjit.execution.batch_sizes import check_counts
from rnnjit.spec import integers


def check_batch_sizes(sizes: Any, data: Tensor, *, given_state: bool) -> list[int]:
    """Check the batch sizes and return them as Python ints, which are fast to check.

    Args:
        sizes: `batch_sizes` of a PackedSequence.
        data: its data.
        given_state: whether the call has an initial state.

    Raises:
        IndexError: there are no time steps.
        TypeError: `sizes` is not a Tensor, or not of integers.
        RuntimeError: `sizes` is not an int64 CPU tensor, grows, or does not fit `data`.
    """
    check_sizes_tensor(sizes, given_state=given_state)
    counts = integers(sizes)
    check_counts(counts, data.shape[0] if data.dim() else None)
    return counts


def check_sizes_tensor(sizes: Any, *, given_state: bool) -> None:
    """Check what is known of batch sizes without their values; as `check_batch_sizes`."""
    if not isinstance(sizes, Tensor):
        empty = isinstance(sizes, (list, tuple)) and not sizes
        raise (IndexError if empty else TypeError)(
            f"input.batch_sizes must be a Tensor, got {type(sizes).__name__}"
        )
    if not sizes.is_cpu or sizes.layout is not torch.strided:
        raise RuntimeError(
            f"input.batch_sizes must be a dense tensor on the CPU, got one of layout "
            f"{sizes.layout} on {sizes.device}"
        )
    if sizes.dim() == 0:
        raise IndexError("input.batch_sizes must be 1-D, got 0-D")
    if sizes.numel() == 0:
        raise IndexError("input is a PackedSequence without time steps: its batch_sizes is empty")
    if sizes.dim() != 1 or sizes.dtype != torch.int64:
        # Without a state eager fails earlier, with TypeError, when it creates the zeros.
        makes_zeros = not given_state and (sizes.dim() != 1 or sizes.is_floating_point())
        raise (TypeError if makes_zeros else RuntimeError)(
            f"input.batch_sizes must be 1-D and torch.int64, got {sizes.dim()}-D {sizes.dtype}"
        )


def first_size(sizes: Any) -> int | None:
    """The number of sequences that `batch_sizes` begins with, or None if it holds none."""
    try:
        return int(sizes[0])
    except (IndexError, RuntimeError, TypeError, ValueError):
        return None


def permute_state(hx: Tensor, order: Any) -> Tensor:
    """Permute the sequences of a state `[L*D, B, H]` by `order` `[B]`.

    Raises:
        IndexError, RuntimeError, TypeError: what `index_select` raises, with a clearer message.
    """
    try:
        return hx.index_select(1, order)
    except (IndexError, RuntimeError, TypeError) as error:
        which = f"has {order.numel()} sequences" if isinstance(order, Tensor) else "is not a Tensor"
        raise type(error)(
            f"hx of shape {list(hx.shape)} cannot be put in the order of input.sorted_indices, "
            f"which {which}: {error}"
        ) from error


def check_order(name: str, order: Any, batch: int, data: Tensor) -> None:
    """Check `sorted_indices` or `unsorted_indices`, with the exceptions of `index_select`.

    Raises:
        TypeError: it is neither a Tensor nor None.
        IndexError: it is not 1-D and strided.
        RuntimeError: it has a wrong dtype, length or device, or an element is out of range.
    """
    if order is None:
        return
    if not isinstance(order, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(order).__name__}")
    if order.dim() > 1 or order.layout is not torch.strided:
        raise IndexError(f"{name} must be 1-D, got {order.dim()}-D of layout {order.layout}")
    if order.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"{name} must be torch.int64 or int32, got {order.dtype}")
    if order.numel() != batch or order.device != data.device:
        raise RuntimeError(
            f"{name} must have an element for each of {batch} sequences, on {data.device}, got "
            f"{order.numel()} on {order.device}"
        )
    # On other devices reading the values would synchronise, and the device checks them itself. In a
    # traced graph `index_select` does.
    if not torch.compiler.is_compiling() and order.is_cpu and batch:
        numbers = integers(order.view(batch))
        low, high = min(numbers), max(numbers)
        if low < 0 or high >= batch:
            wrong = low if low < 0 else high
            raise RuntimeError(f"{name} must lie between 0 and {batch - 1}, got {wrong}")
