"""Cells as users write them, in normal form: with parameters, row inputs, and without a product."""

from __future__ import annotations

from rnnjit.ir import CellSpec, Value, normal_form
from rnnjit.ir.builder import exp, relu, sigmoid, softplus, tanh

_Parts = tuple[Value, ...]


def _leaky(zx: _Parts, zh: _Parts, v: Value, alpha: Value, noise: Value) -> tuple[Value, Value]:
    v = (1.0 - alpha) * v + alpha * (zx[0] + zh[0]) + noise
    return relu(v), v


def _peephole(
    zx: _Parts, zh: _Parts, h: Value, c: Value, p_i: Value, p_f: Value, p_o: Value
) -> tuple[Value, Value, Value]:
    i, f, g, o = (x + y for x, y in zip(zx, zh, strict=True))
    c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    h = sigmoid(o + p_o * c) * tanh(c)
    return h, h, c


def _integrator(zx: _Parts, zh: _Parts, h: Value, tau: Value, span: Value) -> tuple[Value, Value]:
    kept = exp(-softplus(tau) * span)
    h = kept * h + (1.0 - kept) * tanh(zx[0])
    return h, h


#: A leaky firing-rate network with noise; W_hh is multiplied with relu(v).
LEAKY = normal_form(
    CellSpec.trace(
        _leaky,
        name="leaky",
        gates=["z"],
        states=["v"],
        parameters=["alpha"],
        operand=lambda v, alpha: relu(v),
        row_inputs=["noise"],
    )
).cell
#: LSTM with peepholes (Gers, Schraudolph & Schmidhuber 2002).
PEEPHOLE = CellSpec.trace(
    _peephole,
    name="peephole",
    gates=["i", "f", "g", "o"],
    states=["h", "c"],
    parameters=["p_i", "p_f", "p_o"],
)
#: Units with a time constant each, that do not read each other, at times `span` apart.
INTEGRATOR = CellSpec.trace(
    _integrator,
    name="integrator",
    gates=["z"],
    states=["h"],
    parameters=["tau"],
    row_inputs=["span"],
)
CELLS = {cell.name: cell for cell in (LEAKY, PEEPHOLE, INTEGRATOR)}
