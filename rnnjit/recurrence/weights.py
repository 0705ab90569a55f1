"""A layer's weights, sorted by kind for a recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import States
from rnnjit.spec import LayerSpec


class Weights(NamedTuple):
    """A layer's weights by their kind, one for each direction.

    Attributes:
        w_ih: `[G*H, I]`.
        w_hh: as `Forward.w_hh`.
        bias: `[G*H]`, the bias of Z; empty if there are no biases.
        b_hh: as `Forward.b_hh`.
        w_hr: as `Forward.w_hr`.
        parameters: as `Forward.parameters`.
    """

    w_ih: list[Tensor]
    w_hh: list[Tensor]
    bias: list[Tensor]
    b_hh: list[Tensor]
    w_hr: list[Tensor]
    parameters: list[States]


def by_kind(layer: LayerSpec, weights: Sequence[Tensor]) -> Weights:
    """Sort weights by kind.

    For gates whose zx and zh occur only in their sum, the bias of Z is the sum of both biases.
    """
    count, H, product = layer.weights_per_direction, layer.hidden_size, layer.cell.has_product
    apart = [a.gate for a in layer.cell.accumulators if a.part == "hidden"]
    found = Weights([], [], [], [], [], [])
    for d in range(layer.num_directions):
        w_ih, w_hh, *own = weights[d * count : (d + 1) * count]
        found.w_ih.append(w_ih)
        found.w_hh.append(w_hh.contiguous())
        b_ih, b_hh = (own.pop(0), own.pop(0)) if layer.bias else (None, None)
        if layer.proj_size:
            found.w_hr.append(own.pop(0).contiguous())
        found.parameters.append(tuple(each.contiguous() for each in own))
        if b_ih is None or b_hh is None:
            continue
        total = b_ih + b_hh if product else b_ih
        found.bias.append(total)
        if apart:
            hidden = torch.zeros_like(b_hh)
            for gate in apart:
                columns = slice(gate * H, (gate + 1) * H)
                total[columns], hidden[columns] = b_ih[columns], b_hh[columns]
            found.b_hh.append(hidden)
    return found
