"""From the arguments of a call to rows, and back: the checks are nn.RNN's, with its exceptions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.spec import RNNSpec, Rows


class Prepared(NamedTuple):
    """A call in the core's own terms.

    Attributes:
        x: `[N, I]` contiguous rows.
        h0: `[L*D, B, H]`, in the order of the rows, or None for zeros.
        rows: how the rows are laid over time.
        packed: the PackedSequence that was given, if one was.
        batched: False for a single sequence given without a batch dimension.
    """

    x: Tensor
    h0: Tensor | None
    rows: Rows
    packed: PackedSequence | None
    batched: bool


def prepare(spec: RNNSpec, dtype: torch.dtype, device: torch.device, x: Any, hx: Any) -> Prepared:
    """Check the arguments of a call as nn.RNN does, and lay them out as rows.

    Args:
        spec: what the module is.
        dtype: of the module's weights.
        device: of the module's weights.
        x: a Tensor `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]`, or a PackedSequence.
        hx: the initial state `[L*D, B, H]` (`[L*D, H]` if unbatched), or None.

    Raises:
        AttributeError: an argument is no tensor.
        ValueError: wrong rank, or a dtype other than the weights'.
        RuntimeError: any other wrong shape, dtype or device.
        IndexError: a PackedSequence without time steps.
    """
    packed = x if isinstance(x, PackedSequence) else None
    if packed is not None:
        return _prepare_packed(spec, dtype, device, packed, hx)
    _expect_tensor("input", x)
    rank = x.dim()
    if rank not in (2, 3):
        raise ValueError(f"input must be 2-D (unbatched) or 3-D (batched), got {rank}-D: {_of(x)}")
    if hx is not None:
        _expect_tensor("hx", hx)
        if hx.dim() != rank:
            kind = "batched" if rank == 3 else "unbatched"
            raise RuntimeError(
                f"hx must be {rank}-D like the {kind} input, got {hx.dim()}-D: {_of(hx)}"
            )
    _check_input(spec, dtype, device, x)
    if rank == 2:
        time_major = x.unsqueeze(1)
        hx = hx if hx is None else hx.unsqueeze(1)
    else:
        time_major = x.transpose(0, 1) if spec.batch_first else x
    steps, batch, _ = time_major.shape
    if steps == 0:
        raise RuntimeError(f"input must have at least one time step, got none: {_of(x)}")
    _check_state(spec, dtype, device, hx, batch, unbatched=rank == 2)
    flat = time_major.reshape(steps * batch, spec.input_size)
    return Prepared(flat.contiguous(), hx, Rows(steps, batch, steps * batch), None, rank == 3)


def _prepare_packed(
    spec: RNNSpec, dtype: torch.dtype, device: torch.device, packed: PackedSequence, hx: Any
) -> Prepared:
    sizes = packed.batch_sizes
    if sizes.numel() == 0:
        raise IndexError("input is a PackedSequence without time steps: its batch_sizes is empty")
    data = packed.data
    _expect_tensor("hx", hx, optional=True)
    if hx is not None and packed.sorted_indices is not None:
        hx = hx.index_select(1, packed.sorted_indices)
    _check_input(spec, dtype, device, data, rank=2)
    if sizes.dtype != torch.int64:
        raise RuntimeError(f"input.batch_sizes must be torch.int64, got {sizes.dtype}")
    batch, total = int(sizes[0]), int(sizes.sum())
    if bool((sizes < 0).any()) or bool((sizes.diff() > 0).any()):
        raise RuntimeError(
            "input.batch_sizes must never grow from one step to the next nor be negative, "
            f"got {_some(sizes)}"
        )
    if total > data.shape[0]:
        raise RuntimeError(
            f"input.batch_sizes adds up to {total} rows, but input.data has {data.shape[0]}"
        )
    _check_state(spec, dtype, device, hx, batch, unbatched=False)
    rows = Rows(sizes.numel(), batch, total, sizes.contiguous())
    return Prepared(data[:total].contiguous(), hx, rows, packed, True)


def restore(
    spec: RNNSpec, prepared: Prepared, y: Tensor, h_n: Tensor
) -> tuple[Tensor | PackedSequence, Tensor]:
    """Give rows `y [N, D*H]` and `h_n [L*D, B, H]` the form in which the input came."""
    packed, rows = prepared.packed, prepared.rows
    if packed is not None:
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
        output = PackedSequence(
            y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return output, h_n
    if not prepared.batched:
        return y, h_n.squeeze(1)
    y = y.view(rows.T, rows.B, y.shape[1])
    return (y.transpose(0, 1) if spec.batch_first else y), h_n


def check_weights(
    names: list[str], weights: tuple[Tensor, ...], shapes: tuple[torch.Size, ...]
) -> None:
    """Check that a module's weights fit each other and its configuration.

    Weights may be replaced at any time, and kernels trust their shapes.

    Raises:
        RuntimeError: a weight has another shape, dtype or device than the layer needs.
    """
    first = weights[0]
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        if weight.shape != shape:
            raise RuntimeError(f"{name} must have shape {list(shape)}, got {list(weight.shape)}")
        if weight.dtype != first.dtype or weight.device != first.device:
            raise RuntimeError(
                f"{name} must be {first.dtype} on {first.device} like {names[0]}, "
                f"got {weight.dtype} on {weight.device}"
            )


def _check_input(
    spec: RNNSpec, dtype: torch.dtype, device: torch.device, x: Tensor, rank: int | None = None
) -> None:
    if x.dtype != dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"input is {x.dtype} but the weights are {dtype}: convert the input with "
            f"input.to({dtype}) or the model with model.to({x.dtype})"
        )
    if rank is not None and x.dim() != rank:
        raise RuntimeError(f"input.data must be {rank}-D, got {x.dim()}-D: {_of(x)}")
    if x.shape[-1] != spec.input_size:
        raise RuntimeError(
            f"input must have input_size={spec.input_size} features in its last dimension, "
            f"got {x.shape[-1]}: {_of(x)}"
        )
    if x.device != device:
        raise RuntimeError(f"input is on {x.device} but the weights are on {device}")


def _check_state(
    spec: RNNSpec,
    dtype: torch.dtype,
    device: torch.device,
    hx: Tensor | None,
    batch: int,
    *,
    unbatched: bool,
) -> None:
    if hx is None:
        return
    expected = (spec.num_layers * spec.num_directions, batch, spec.hidden_size)
    if tuple(hx.shape) != expected:
        shown = (expected[0], expected[2]) if unbatched else expected
        got = [hx.shape[0], hx.shape[2]] if unbatched else list(hx.shape)
        raise RuntimeError(
            f"hx must have shape {list(shown)} (num_layers * num_directions"
            f"{'' if unbatched else ', batch'}, hidden_size), got {got}"
        )
    if hx.dtype != dtype and not torch._C._is_any_autocast_enabled():
        raise RuntimeError(f"hx is {hx.dtype} but the weights are {dtype}")
    if hx.device != device:
        raise RuntimeError(f"hx is on {hx.device} but the weights are on {device}")


def _expect_tensor(name: str, value: Any, *, optional: bool = False) -> None:
    if isinstance(value, Tensor) or (optional and value is None):
        return
    expected = "a Tensor or a PackedSequence" if name == "input" else "a Tensor or None"
    raise AttributeError(f"{name} must be {expected}, got {type(value).__name__}")


def _of(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}"


def _some(sizes: Tensor) -> str:
    shown = ", ".join(str(int(size)) for size in sizes[:8])
    return f"[{shown}{', ...' if sizes.numel() > 8 else ''}]"
