"""Cells as data: the pointwise part of a recurrent layer as a small program, and its derivative.

A `Cell` is a value. Backends lower the operations of its programs with `evaluate` and know no cell
by name; what identifies a cell is the digest of its canonical text. Evaluators are modules of
their own, `torch_evaluator` and `numpy_evaluator`, and what a cell's function is written with is
in `builder`.
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
