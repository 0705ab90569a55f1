"""Cells as data: the pointwise part of a recurrent layer as a small program, and its derivative.

A `CellSpec` is immutable, and the digest of its canonical text identifies it. Backends lower the
operations of its programs with `evaluate` and do not depend on the names of cells. `builder` has
the functions that cells are written with; `torch_evaluator` and `numpy_evaluator` run programs.
"""

from __future__ import annotations

from rnnjit.ir.builder import Value, trace
from rnnjit.ir.cell_spec import Accumulator, CellSpec
from rnnjit.ir.derivative import derivative
from rnnjit.ir.gru import GRU
from rnnjit.ir.lstm import LSTM
from rnnjit.ir.normal_form import NormalForm, normal_form
from rnnjit.ir.operations import OPERATIONS, Kind, Operation
from rnnjit.ir.program import Instruction, Program, evaluate
from rnnjit.ir.resets import with_resets
from rnnjit.ir.rnn import RNN_RELU, RNN_TANH

__all__ = [
    "GRU",
    "LSTM",
    "OPERATIONS",
    "RNN_RELU",
    "RNN_TANH",
    "Accumulator",
    "CellSpec",
    "Instruction",
    "Kind",
    "NormalForm",
    "Operation",
    "Program",
    "Value",
    "derivative",
    "evaluate",
    "normal_form",
    "trace",
    "with_resets",
]
