"""From a layer and a plan to a kernel's argument block: all that does not depend on tensors."""

from __future__ import annotations

from rnnjit import LayerSpec, Rows
from rnnjit.codegen.argument_block import argument_block
from rnnjit.codegen.forward_call import Recipe
from rnnjit.codegen.kernel import LINE, Kind
from rnnjit.codegen.row_slices import late_threads_for, shared_in_backward
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments, area_bytes
from rnnjit_numba.library import library
from rnnjit_numba.plan import REDUCTION_ROWS, Plan, plan, window
from rnnjit_numba.tile_shapes import TileShape, Tiling

#: From this many bytes on, scratch memory is allocated; less is part of the argument block.
_LARGE = 4096


def forward_plan(kind: Kind, layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """How a forward pass is divided between at most `threads` threads."""
    return plan(layer, rows, threads, _vectors(kind, layer.hidden_size))


def backward_plan(kind: Kind, layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """How a backward pass is divided between at most `threads` threads."""
    shared = shared_in_backward(layer, rows)
    return plan(layer, rows, threads, _vectors(kind, layer.hidden_size), shared)


def forward(kind: Kind, layer: LayerSpec, rows: Rows, cut: Plan, tiling: Tiling) -> Recipe:
    """How a layer's forward kernel is called for some rows."""
    kernels, size = library(kind), kind.bits // 8
    lanes, vector = kernels.isa.lanes(size), kernels.isa.vector_bytes
    wide_i, wide_h = _vectors(kind, layer.input_size), _vectors(kind, layer.hidden_size)
    packed_inputs = wide_i * lanes * vector
    packed_row = packed_inputs + wide_h * lanes * vector
    if cut.direct:
        packed_inputs = packed_row = 0
    packed = wide_h * (packed_row + vector)
    fixed = {
        **_problem(layer, rows, cut, tiling),
        "hoist": int(cut.hoist),
        "packed_inputs": packed_inputs,
        "packed_row": packed_row,
        "packed": packed,
    }
    scratch, sync = layer.num_directions * packed, _sync_words(layer, cut.threads)
    names = ForwardArguments._fields
    inside = 8 * (len(names) + sync) if scratch < _LARGE else 0
    block = argument_block(names, fixed, sync + (scratch // 8 if inside else 0))
    late = late_threads_for((__name__, "forward", size), layer, rows, cut.threads)
    return Recipe(kernels.forward, cut.threads, block, scratch // size, inside, sync, (), late)


def backward(
    kind: Kind, layer: LayerSpec, rows: Rows, cut: Plan, tiling: Tiling, outer: TileShape
) -> Recipe:
    """As `forward`, backward; `parts` are the offsets of dz, `before` and the reductions."""
    kernels, size, D = library(kind), kind.bits // 8, layer.num_directions
    vector = kernels.isa.vector_bytes
    wide_i, wide_h = _vectors(kind, layer.input_size), _vectors(kind, layer.hidden_size)
    shared, (window_rows, held_rows) = shared_in_backward(layer, rows), window(layer, rows)
    packed_column = 0 if cut.direct else layer.hidden_size * vector
    packed = (wide_h + wide_i) * packed_column + max(wide_i, wide_h) * vector
    dz_block = -(-layer.hidden_size // outer.rows) * outer.rows * REDUCTION_ROWS * size
    # After the packed blocks of dz and of an operand, one vector for the sums of db.
    reduction = _aligned(dz_block) + (REDUCTION_ROWS * outer.vectors + 1) * vector
    fixed = {
        **_problem(layer, rows, cut, tiling),
        "window": window_rows,
        "packed_column": packed_column,
        "packed": packed,
        "outer_rows": outer.rows,
        "outer_vectors": outer.vectors,
        "reduction_size": _aligned(reduction),
    }
    sync = _sync_words(layer, cut.threads)
    block = argument_block(BackwardArguments._fields, fixed, sync)
    dz = D * packed
    before = _aligned(dz + D * held_rows * layer.hidden_size * size)
    own = _aligned(before + D * rows.N * 8)
    scratch = (own + cut.threads * fixed["reduction_size"]) // size
    late = late_threads_for((__name__, "backward", size), layer, rows, cut.threads, shared)
    parts = dz, before, own
    return Recipe(kernels.backward, cut.threads, block, scratch, 0, sync, parts, late)


def _problem(layer: LayerSpec, rows: Rows, cut: Plan, tiling: Tiling) -> dict[str, int]:
    """The arguments that both kernels take."""
    return {
        "T": rows.T,
        "B": rows.B,
        "N": rows.N,
        "I": layer.input_size,
        "H": layer.hidden_size,
        "D": layer.num_directions,
        "slices": cut.slices,
        "slice_rows": cut.slice_rows,
        "stride": cut.stride,
        "parts": cut.parts,
        "tail": cut.tail,
        "direct": int(cut.direct),
        "tile": tiling.code,
    }


def _vectors(kind: Kind, features: int) -> int:
    """Vectors that hold some features of a row."""
    return -(-features // library(kind).isa.lanes(kind.bits // 8))


def _sync_words(layer: LayerSpec, threads: int) -> int:
    """Words for synchronisation: an area for the team, one per direction, and their alignment."""
    if threads == 1:
        return 0
    return (area_bytes(threads) * (1 + layer.num_directions) + LINE) // 8


def _aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // LINE) * LINE
