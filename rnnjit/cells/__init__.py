"""Cells as data: the pointwise part of a recurrent layer as a small program, and its derivative.

A `Cell` is immutable, and the digest of its canonical text identifies it. Backends lower the
operations of its programs with `evaluate` and do not depend on the names of cells. `builder` has
the functions that cells are written with; `torch_evaluator` and `numpy_evaluator` run programs.
"""

from __future__ import annotations

from rnnjit.cells.builder import Value, trace
from rnnjit.cells.cell import Accumulator, Cell
from rnnjit.cells.derivative import derivative
from rnnjit.cells.gru import GRU
from rnnjit.cells.lstm import LSTM
from rnnjit.cells.operations import OPERATIONS, Kind, Operation
from rnnjit.cells.program import Instruction, Program, evaluate
from rnnjit.cells.rnn import RNN_RELU, RNN_TANH

__all__ = [
    "GRU",
    "LSTM",
    "OPERATIONS",
    "RNN_RELU",
    "RNN_TANH",
    "Accumulator",
    "Cell",
    "Instruction",
    "Kind",
    "Operation",
    "Program",
    "Value",
    "derivative",
    "evaluate",
    "trace",
]
