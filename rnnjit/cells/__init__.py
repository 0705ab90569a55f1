"""Cells that users write: the class `Cell`, and what tracing one step of a cell gives."""

from __future__ import annotations

from rnnjit.cells.base import Cell

__all__ = ["Cell"]
