"""nn.RNN's cells: h' = tanh(z) or relu(z), z = W_ih x + b_ih + W_hh h + b_hh (Elman 1990)."""

from __future__ import annotations

from rnnjit.ir import builder
from rnnjit.ir.builder import Value
from rnnjit.ir.cell_spec import CellSpec, built_in


def _tanh(zx: tuple[Value], zh: tuple[Value], h: Value) -> tuple[Value, Value]:
    h = builder.tanh(zx[0] + zh[0])
    return h, h


def _relu(zx: tuple[Value], zh: tuple[Value], h: Value) -> tuple[Value, Value]:
    h = builder.relu(zx[0] + zh[0])
    return h, h


#: nn.RNN(nonlinearity="tanh").
RNN_TANH = built_in(CellSpec.trace(_tanh, name="tanh", gates=["z"], states=["h"]))

#: nn.RNN(nonlinearity="relu").
RNN_RELU = built_in(CellSpec.trace(_relu, name="relu", gates=["z"], states=["h"]))
