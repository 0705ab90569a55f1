"""How a call for a layer of int8 matrices is divided between threads, and how long its rows are.

An int8 product multiplies several times as fast as one of float32, so that most calls are bound by
reading the matrices. They are read as they lie, once in a step for each slice of the batch, and
W_ih once for the rows of a window. Results are the same, bit for bit, whatever the plan.
"""

from __future__ import annotations

from rnnjit import LayerSpec, RNNSpec, Rows
from rnnjit.codegen import Isa
from rnnjit.codegen.cell_layout import operand_size
from rnnjit.codegen.plan import Plan
from rnnjit.codegen.row_slices import (
    multiply_adds,
    one_slice,
    recurrent_work,
    row_slices,
    worth_team,
)

#: Bytes before the numbers of a quantized row: its scale, and what aligns them.
HEAD = 64
#: Numbers that a dot product of 512 bits multiplies at a time; quantized rows are padded to them.
CHUNK = 64
#: Multiply-adds of int8 that a thread does in the time of one of float32: with dot products of
#: bytes, and without.
_FASTER_DOT, _FASTER_PAIRS = 4, 2
#: Bytes of W_hh from which on a core's second-level cache does not hold it: reading it takes as
#: long as multiplying it with so many rows.
_LARGE, _READING_ROWS = 1 << 19, 16
#: The cost of synchronising with one more thread, in multiply-adds of int8 of a thread.
_SYNC_WORK = 64_000
#: Rows of a matrix may have so many numbers: sums of products of unsigned and signed bytes stay
#: below 2^31.
LONGEST = 1 << 16


def why_not_long(spec: RNNSpec) -> list[str]:
    """Why the products of a stack of int8 matrices might overflow; empty if they cannot."""
    reasons = []
    for index, layer in enumerate(spec.layers):
        found = {"w_ih": layer.input_size, "w_hh": operand_size(layer)}
        if layer.proj_size:
            found["w_hr"] = layer.hidden_size
        reasons += [
            f"int8 products of rows of up to {LONGEST} numbers are supported, and those of {name} "
            f"of layer {index} have {size}"
            for name, size in found.items()
            if size > LONGEST
        ]
    return reasons


def multiplies_bytes(isa: Isa) -> bool:
    """Whether a target multiplies bytes by one instruction."""
    return isa.vector_bytes == 64 and {"+avx512vnni", "+avx512bw"} <= set(isa.features)


def step_numbers(isa: Isa) -> int:
    """Numbers of a row that are multiplied at a time: bytes of a vector, or pairs of 16 bits."""
    return CHUNK if multiplies_bytes(isa) else 2 * isa.lanes(4)


def row_bytes(isa: Isa, k: int) -> int:
    """Bytes of a quantized row of k numbers; `rnnjit_numba.int8_rows` says what they hold."""
    padded = -(-k // CHUNK) * CHUNK
    return HEAD + (padded if multiplies_bytes(isa) else 2 * (padded + step_numbers(isa)))


def int8_plan(layer: LayerSpec, rows: Rows, threads: int, vectors: int, *, dot: bool) -> Plan:
    """As `rnnjit.codegen.plan.plan`, of a forward pass; the input projection is always hoisted.

    `dot` says whether the target has dot products of bytes.
    """
    alone = Plan(1, *one_slice(rows), 1, True)
    weights, D = recurrent_work(layer), layer.num_directions
    reading = _READING_ROWS if weights >= _LARGE else 2
    whole = max(1, -(-rows.N // max(rows.T, 1)))
    cut = row_slices(layer, rows, threads)
    slice_rows = max(1, -(-cut.slice_rows * rows.N // max(rows.T * rows.B, 1)))

    def step(count: int, parts: int) -> float:
        return max(count, reading) * weights / parts + _SYNC_WORK * (parts - 1)

    # All hidden units of a row have to be known before its projection.
    most = 1 if layer.proj_size else max(1, min(threads // D, vectors))
    parts = min(range(1, most + 1), key=lambda count: step(whole, count))
    by_parts, by_slices = step(whole, parts), step(slice_rows, 1)
    inputs = (multiply_adds(layer, rows) - rows.N * D * weights) * (threads - 1) / threads
    saved = inputs + rows.T * (D * step(whole, 1) - min(by_parts, by_slices))
    if threads == 1 or not worth_team(saved / (_FASTER_DOT if dot else _FASTER_PAIRS)):
        return alone
    if parts > 1 and by_parts < by_slices:
        return Plan(threads, *one_slice(rows), parts, True)
    return Plan(threads, *cut, 1, True)
