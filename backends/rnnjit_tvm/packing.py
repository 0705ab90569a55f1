"""Packed weights: panels `[k][lanes]` of one vector of columns each, as the tiles read them.

Weights are packed anew for each call, so that no weight is ever stale. Lanes beyond the last column
are zeros: nothing reads their sums, but uninitialised memory may hold values that are slow to
multiply.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.tensorir import Module, integer, loop, when


def add_packing(module: Module) -> None:
    """PrimFuncs `pack_transposed` and `pack`, each of which fills one panel."""
    _add_pack_transposed(module)
    _add_pack(module)


def _add_pack_transposed(module: Module) -> None:
    """`pack_transposed(w, panel, ld, k, count)`: panel[i, l] = w[l, i] for l below `count`.

    Square blocks of `lanes` rows are transposed in registers; the rest of k and narrower panels
    are copied element by element.
    """
    lanes = module.lanes

    def body(w: Any, panel: Any, ld: Any, k: Any, count: Any) -> None:
        whole = T.bind(T.Select(count == lanes.count, k, integer(0)))
        squares = T.bind(T.truncdiv(whole, integer(lanes.count)))
        with loop(integer(0), squares) as square:
            start = T.bind(square * lanes.count)
            found = [T.bind(w[lanes.at(row * ld + start)]) for row in range(lanes.count)]
            for i, vector in enumerate(_transposed(found)):
                T.buffer_store(panel, vector, [lanes.at((start + i) * lanes.count)])
        with loop(squares * lanes.count, k) as i:
            with when(count < lanes.count):
                T.buffer_store(panel, lanes.zeros(), [lanes.at(i * lanes.count)])
            with loop(integer(0), count) as lane:
                T.buffer_store(panel, w[lane * ld + i], [i * lanes.count + lane])

    module.add("pack_transposed", ["w", "panel"], ["ld", "k", "count"], body)


def _transposed(rows: list[Any]) -> list[Any]:
    """The columns of a square block of vectors, by exchanging blocks of 1, 2, 4, ... lanes.

    Eklundh, "A fast computer method for matrix transposing", IEEE Trans. Computers C-21(7), 1972.
    """
    count, block = len(rows), 1
    while block < count:
        kept = [lane if lane & block == 0 else count + lane - block for lane in range(count)]
        moved = [lane + block if lane & block == 0 else count + lane for lane in range(count)]
        exchanged = list(rows)
        for i in range(count):
            if i & block == 0:
                pair = [rows[i], rows[i + block]]
                exchanged[i] = T.bind(T.Shuffle(pair, kept))
                exchanged[i + block] = T.bind(T.Shuffle(pair, moved))
        rows, block = exchanged, 2 * block
    return rows


def _add_pack(module: Module) -> None:
    """`pack(w, panel, ld, k, count)`: panel[i, l] = w[i, l] for l below `count`."""
    lanes = module.lanes

    def body(w: Any, panel: Any, ld: Any, k: Any, count: Any) -> None:
        with loop(integer(0), k) as i:
            value = lanes.load(w, i * ld, count)
            T.buffer_store(panel, value, [lanes.at(i * lanes.count)])

    module.add("pack", ["w", "panel"], ["ld", "k", "count"], body)
