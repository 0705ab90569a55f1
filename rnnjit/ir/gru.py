"""nn.GRU's cell: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014.

As in cuDNN and torch, the reset gate is applied after the product with W_hn:

    r = sigmoid(zx_r + zh_r)    z = sigmoid(zx_z + zh_z)    n = tanh(zx_n + r * zh_n)
    h' = (h - n) * z + n
"""

from __future__ import annotations

from rnnjit.ir.builder import Value, sigmoid, tanh
from rnnjit.ir.cell_spec import CellSpec, built_in


def _gru(zx: tuple[Value, ...], zh: tuple[Value, ...], h: Value) -> tuple[Value, Value]:
    r = sigmoid(zx[0] + zh[0])
    z = sigmoid(zx[1] + zh[1])
    n = tanh(zx[2] + r * zh[2])
    h = (h - n) * z + n
    return h, h


#: nn.GRU and nn.GRUCell.
GRU = built_in(CellSpec.trace(_gru, name="gru", gates=["r", "z", "n"], states=["h"]))
