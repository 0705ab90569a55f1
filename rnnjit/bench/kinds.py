"""The recurrent layers that benchmarks know, as data, for contestants without rnnjit or torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rnnjit.bench.records import Case, CellName

#: `(functions, nonlinearity, zx, zh, states) -> states`, see `Kind.step`.
Step = Callable[[Any, str, Sequence[Any], Sequence[Any], Sequence[Any]], tuple[Any, ...]]


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        layer: its class in `torch.nn`, and the name of its operator in ONNX. "Cell" is appended for
            the class of one step.
        gates: G, letters of the gates in torch's order; "z" for the only one of nn.RNN.
        onnx_gates: the same letters in the order of the operator.
        onnx_options: attributes of the operator that make it compute what torch does.
        states: names of the states, of which the first is the output.
        step: computes the new states from a module with `sigmoid`, `tanh` and `relu`, the case's
            nonlinearity, the gates' parts of the input and of the state (biases included), and the
            states before. The first new state is the output before a projection.
        apart: whether a step uses the two parts of a gate apart from each other, so that their
            biases cannot be added up in advance.
        nonlinear: whether the layer has a choice of nonlinearities.
        projects: whether the layer takes a `proj_size`.
    """

    layer: str
    gates: str
    onnx_gates: str
    onnx_options: MappingProxyType[str, Any]
    states: tuple[str, ...]
    step: Step
    apart: bool = False
    nonlinear: bool = False
    projects: bool = False


def _rnn(
    functions: Any, nonlinearity: str, zx: Sequence[Any], zh: Sequence[Any], states: Sequence[Any]
) -> tuple[Any, ...]:
    return (getattr(functions, nonlinearity)(zx[0] + zh[0]),)


def _lstm(
    functions: Any, nonlinearity: str, zx: Sequence[Any], zh: Sequence[Any], states: Sequence[Any]
) -> tuple[Any, ...]:
    z_i, z_f, z_g, z_o = (a + b for a, b in zip(zx, zh, strict=True))
    c = functions.sigmoid(z_f) * states[1] + functions.sigmoid(z_i) * functions.tanh(z_g)
    return functions.sigmoid(z_o) * functions.tanh(c), c


def _gru(
    functions: Any, nonlinearity: str, zx: Sequence[Any], zh: Sequence[Any], states: Sequence[Any]
) -> tuple[Any, ...]:
    r, z = functions.sigmoid(zx[0] + zh[0]), functions.sigmoid(zx[1] + zh[1])
    n = functions.tanh(zx[2] + r * zh[2])
    return ((1 - z) * n + z * states[0],)


_NO_OPTIONS: MappingProxyType[str, Any] = MappingProxyType({})
_RESET_LAST = MappingProxyType({"linear_before_reset": 1})

#: By the name of a cell, `Case.cell`.
KINDS: MappingProxyType[CellName, Kind] = MappingProxyType(
    {
        "rnn": Kind("RNN", "z", "z", _NO_OPTIONS, ("h",), _rnn, nonlinear=True),
        "lstm": Kind("LSTM", "ifgo", "iofg", _NO_OPTIONS, ("h", "c"), _lstm, projects=True),
        "gru": Kind("GRU", "rzn", "zrn", _RESET_LAST, ("h",), _gru, apart=True),
    }
)


def kind_of(case: Case) -> Kind:
    """The kind of layer of a case."""
    return KINDS[case.cell]


def offers(case: Case) -> bool:
    """Whether torch has such a layer: not every kind has each option."""
    kind = kind_of(case)
    return (kind.projects or not case.proj_size) and (kind.nonlinear or case.nonlinearity == "tanh")
