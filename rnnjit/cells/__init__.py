"""Cells that users write: the class `Cell`, and what tracing one step of a cell gives."""

from __future__ import annotations

from rnnjit.cells.base import Cell
from rnnjit.cells.traced_cell import Draw, TracedCell
from rnnjit.cells.tracing import trace_cell

__all__ = ["Cell", "Draw", "TracedCell", "trace_cell"]
