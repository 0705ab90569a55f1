"""Weights as the tiles read them: panels of one vector of columns each.

Packing is done anew for each call, so that no weight is ever stale. Lanes beyond the last column
are zeros: nothing reads their sums, but what lies in fresh memory could be slow to multiply.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.tensorir import Module, integer, least, loop, when

#: Columns of a matrix that are transposed at a time, so that what is written stays near.
_BLOCK = 64


def add_packing(module: Module) -> None:
    """PrimFuncs `pack_transposed`, `pack` and `pack_bias`, each of which fills one panel."""
    _add_pack_transposed(module)
    _add_pack(module)
    _add_pack_bias(module)


def _add_pack_transposed(module: Module) -> None:
    """`pack_transposed(w, panel, ld, k, count)`: panel[i, l] = w[l, i] for l below `count`."""
    lanes = module.lanes

    def body(w: Any, panel: Any, ld: Any, k: Any, count: Any) -> None:
        with when(count < lanes.count), loop(integer(0), k) as i:
            T.buffer_store(panel, lanes.zeros(), [lanes.at(i * lanes.count)])
        with loop(integer(0), T.truncdiv(k + (_BLOCK - 1), integer(_BLOCK))) as block:
            start = T.bind(block * _BLOCK)
            stop = least(start + _BLOCK, k)
            with loop(integer(0), count) as lane, loop(start, stop) as i:
                T.buffer_store(panel, w[lane * ld + i], [i * lanes.count + lane])

    module.add("pack_transposed", ["w", "panel"], ["ld", "k", "count"], body)


def _add_pack(module: Module) -> None:
    """`pack(w, panel, ld, k, count)`: panel[i, l] = w[i, l] for l below `count`."""
    lanes = module.lanes

    def body(w: Any, panel: Any, ld: Any, k: Any, count: Any) -> None:
        with loop(integer(0), k) as i:
            value = lanes.load(w, i * ld, count)
            T.buffer_store(panel, value, [lanes.at(i * lanes.count)])

    module.add("pack", ["w", "panel"], ["ld", "k", "count"], body)


def _add_pack_bias(module: Module) -> None:
    """`pack_bias(b_ih, b_hh, bias, columns)`: bias = b_ih + b_hh."""

    def body(b_ih: Any, b_hh: Any, bias: Any, columns: Any) -> None:
        with loop(integer(0), columns) as i:
            T.buffer_store(bias, b_ih[i] + b_hh[i], [i])

    module.add("pack_bias", ["b_ih", "b_hh", "bias"], ["columns"], body)
