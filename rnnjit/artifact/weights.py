"""The layout of a stack's weights in an artifact: one block of bytes, the same for all targets."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.spec import RNNSpec

#: Each weight begins at a multiple of this many bytes: a cache line; no vector is wider.
ALIGNMENT = 64


class Place(NamedTuple):
    """The position of a weight.

    Attributes:
        name: its name in nn.RNN, such as "weight_ih_l0_reverse".
        shape: its shape; the elements are in row-major order.
        offset: bytes before its first element.
    """

    name: str
    shape: tuple[int, ...]
    offset: int


class Layout(NamedTuple):
    """The positions of all weights.

    Attributes:
        places: the position of each weight, in nn.RNN's flat order.
        size: bytes of the block.
    """

    places: tuple[Place, ...]
    size: int


def layout(spec: RNNSpec, itemsize: int) -> Layout:
    """The layout for a stack with elements of `itemsize` bytes."""
    places, end = [], 0
    for name, shape in zip(_names(spec), spec.weight_shapes, strict=True):
        places.append(Place(name, tuple(shape), end))
        end += -(-prod(shape) * itemsize // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(places), end)


def pack(spec: RNNSpec, weights: Sequence[Tensor]) -> bytes:
    """Make the block of `weights` (nn.RNN's flat order, one dtype), little-endian."""
    itemsize = weights[0].itemsize
    where = layout(spec, itemsize)
    block = torch.zeros(where.size, dtype=torch.uint8, device="cpu")
    for place, weight in zip(where.places, weights, strict=True):
        content = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        block[place.offset : place.offset + len(content)] = content
    return block.numpy().tobytes()


def _names(spec: RNNSpec) -> list[str]:
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if spec.bias else [])]
    kinds += [*(["weight_hr"] if spec.proj_size else []), *spec.cell.parameters]
    return [
        f"{kind}_l{index}{suffix}"
        for index in range(spec.num_layers)
        for suffix in ("", "_reverse")[: spec.num_directions]
        for kind in kinds
    ]
