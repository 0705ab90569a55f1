"""nn.LSTM's cell, without its projection: Hochreiter & Schmidhuber, Long Short-Term Memory, 1997.

With the forget gate of Gers, Schmidhuber & Cummins (Learning to Forget, 2000):

    i = sigmoid(z_i)    f = sigmoid(z_f)    g = tanh(z_g)    o = sigmoid(z_o)
    c' = f * c + i * g
    h' = o * tanh(c')
"""

from __future__ import annotations

from rnnjit.ir.builder import Value, sigmoid, tanh
from rnnjit.ir.cell_spec import CellSpec, built_in


def _lstm(
    zx: tuple[Value, ...], zh: tuple[Value, ...], h: Value, c: Value
) -> tuple[Value, Value, Value]:
    z_i, z_f, z_g, z_o = (a + b for a, b in zip(zx, zh, strict=True))
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c = f * c + i * g
    h = o * tanh(c)
    return h, h, c


#: nn.LSTM and nn.LSTMCell.
LSTM = built_in(CellSpec.trace(_lstm, name="lstm", gates=["i", "f", "g", "o"], states=["h", "c"]))
