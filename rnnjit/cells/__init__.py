"""Cells that users write: the class `Cell`, what tracing a step gives, and a gallery."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rnnjit.cells.base import Cell
from rnnjit.cells.traced_cell import Draw, TracedCell
from rnnjit.cells.tracing import trace_cell

if TYPE_CHECKING:
    from rnnjit.cells.gallery import (
        JANET,
        LIF,
        MGU,
        UGRNN,
        AntisymmetricRNN,
        DaleRNN,
        IndRNN,
        LeakyRNN,
        LowRankRNN,
        PeepholeLSTM,
    )

__all__ = [
    "JANET",
    "LIF",
    "MGU",
    "UGRNN",
    "AntisymmetricRNN",
    "Cell",
    "DaleRNN",
    "Draw",
    "IndRNN",
    "LeakyRNN",
    "LowRankRNN",
    "PeepholeLSTM",
    "TracedCell",
    "trace_cell",
]


def __getattr__(name: str) -> object:
    """The cells of the gallery, loaded on first use."""
    if name == "gallery" or name in __all__:
        gallery = import_module("rnnjit.cells.gallery")
        return gallery if name == "gallery" else getattr(gallery, name)
    raise AttributeError(f"module 'rnnjit.cells' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "gallery"})
