"""How a call is cut up between threads, and what goes step by step: a small cost model."""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.spec import LayerSpec, Rows

#: Multiply-adds below which a second thread costs more than it saves.
_THREAD_WORK = 100_000
#: Hidden features from which on rows next to each other share no cache line worth mentioning.
_TURN_FEATURES = 64
#: Rows of a slice from which on a step's own product with W_ih is as quick as one for all steps.
_FUSED_ROWS = 4


class Plan(NamedTuple):
    """A cut of one layer's work.

    Attributes:
        threads: size of the team.
        slices: parts of the batch, each of which runs the whole time loop on its own.
        slice_rows: rows in each slice but the last.
        every: 1, or the number of slices where these take the rows in turns.
        fused: whether the input's share is computed step by step too, rather than by one GEMM.
    """

    threads: int
    slices: int
    slice_rows: int
    every: int
    fused: bool


def plan(layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """The plan for a call.

    Args:
        layer: what the layer is.
        rows: how many rows it has and how they are laid over time.
        threads: the most that may be used.
    """
    H, D = layer.hidden_size, layer.num_directions
    batch = max(rows.B, 1)
    if threads == 1 or rows.N * D * H * (layer.input_size + H) < _THREAD_WORK:
        return Plan(1, 1, batch, 1, batch >= _FUSED_ROWS)
    slice_rows = -(-batch // -(-threads // D))
    slices = -(-batch // slice_rows)
    # Sequences come in the order of their lengths: taken in turns, every step is shared evenly.
    turns = slices if rows.T * batch > rows.N and H >= _TURN_FEATURES else 1
    return Plan(min(threads, D * slices), slices, slice_rows, turns, slice_rows >= _FUSED_ROWS)
