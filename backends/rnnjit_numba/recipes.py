"""From a layer and a plan to a kernel's argument block: all that does not depend on tensors."""

from __future__ import annotations

from rnnjit import LayerSpec, Rows
from rnnjit.codegen.argument_block import argument_block
from rnnjit.codegen.cell_layout import CellLayout, operand_size
from rnnjit.codegen.forward_call import Recipe
from rnnjit.codegen.kernel import LINE, Kind
from rnnjit.codegen.plan import (
    REDUCTION_ROWS,
    ROW_BLOCK,
    SEGMENT,
    Z_ROWS,
    Plan,
    plan,
    rows_in_place,
    window,
)
from rnnjit.codegen.row_slices import late_threads_for, shared_in_backward
from rnnjit_numba.arguments import (
    BackwardArguments,
    ForwardArguments,
    Int8Words,
    area_bytes,
    argument_count,
)
from rnnjit_numba.forward_sizes import ForwardSizes
from rnnjit_numba.int8_plan import int8_plan, multiplies_bytes, row_bytes
from rnnjit_numba.library import library
from rnnjit_numba.tile_shapes import TileShape, Tiling

#: From this many bytes on, scratch memory is allocated; less is part of the argument block.
_LARGE = 4096
#: Bytes of input projections that are computed before their steps, so that they stay in a cache,
#: and the fewest rows of them.
_WINDOW_BYTES, _LEAST_WINDOW = 1 << 20, 64


def forward_plan(kind: Kind, layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """How a forward pass is divided between at most `threads` threads."""
    vectors = _vectors(kind, layer.hidden_size)
    if kind.quantized:
        dot = multiplies_bytes(library(kind).isa)
        return int8_plan(layer, rows, threads, vectors, dot=dot)
    return plan(layer, rows, threads, vectors, in_place=_rows_in_place(kind, threads))


def backward_plan(kind: Kind, layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """How a backward pass is divided between at most `threads` threads."""
    vectors, shared = _vectors(kind, layer.hidden_size), shared_in_backward(layer, rows)
    return plan(layer, rows, threads, vectors, shared, in_place=_rows_in_place(kind, threads))


def forward(kind: Kind, layer: LayerSpec, rows: Rows, cut: Plan, tiling: Tiling) -> Recipe:
    """How a layer's forward kernel is called for some rows."""
    kernels, size, D = library(kind), kind.itemsize, layer.num_directions
    sizes = ForwardSizes.of(kernels.isa, kind, layer, direct=cut.direct)
    areas, hoisted = max(cut.threads, D), _hoisted_rows(layer, rows, cut, sizes)
    z_rows = max(1, min(max(cut.slice_rows, cut.tail), Z_ROWS))
    z, own = _aligned(D * sizes.packed), _aligned(z_rows * sizes.z)
    # Behind a thread's pre-activations there are its quantized rows.
    held = max(z_rows, min(rows.N, ROW_BLOCK)) if kind.quantized else 0
    longest = max(layer.input_size, layer.hidden_size, layer.output_size)
    held_bytes = _aligned(row_bytes(kernels.isa, longest))
    z_size = own + held * held_bytes
    hoisted_at = z + areas * z_size
    fixed = {
        **_problem(layer, rows, cut, tiling),
        "packed_inputs": sizes.packed_inputs,
        "packed_row": sizes.packed_row,
        "packed_out": sizes.packed_out,
        "packed": sizes.packed,
        "hoist": int(cut.hoist),
        "z_size": z_size,
        "z_rows": z_rows,
        "z": z,
        "hoisted": hoisted_at,
        "hoisted_size": hoisted * sizes.row,
        "window": min(hoisted, _window_rows(layer, rows, sizes)) if hoisted else rows.N,
    }
    scratch, sync = hoisted_at + D * hoisted * sizes.row, _sync_words(layer, cut.threads)
    names = ForwardArguments._fields
    count = argument_count(ForwardArguments, layer.cell, quantized=kind.quantized)
    inside = 8 * (count + sync) if scratch < _LARGE else 0
    words = count - len(names) + sync + (scratch // 8 if inside else 0)
    block = argument_block(names, fixed, words)
    if kind.quantized:
        first = count - Int8Words.COUNT
        block[first + Int8Words.OFFSET] = own
        block[first + Int8Words.ROW_BYTES] = held_bytes
        block[first + Int8Words.ROWS] = held
    late = late_threads_for(
        (__name__, "forward", kind.dtype, kind.quantized), layer, rows, cut.threads
    )
    return Recipe(kernels.forward, cut.threads, block, scratch // size, inside, sync, (), late)


def _window_rows(layer: LayerSpec, rows: Rows, sizes: ForwardSizes) -> int:
    """Rows whose input projection is computed before their steps."""
    if layer.num_directions == 2:
        return rows.N  # the directions begin at opposite ends
    return max(_LEAST_WINDOW, _WINDOW_BYTES // sizes.row)


def _hoisted_rows(layer: LayerSpec, rows: Rows, cut: Plan, sizes: ForwardSizes) -> int:
    """Rows of the memory for input projections; none if they are computed by steps, or in y."""
    hoists = (cut.hoist or cut.parts > 1) and not cut.direct
    if not (hoists and sizes.row):
        return 0
    return min(rows.N, max(_window_rows(layer, rows, sizes), rows.B))


def backward(
    kind: Kind, layer: LayerSpec, rows: Rows, cut: Plan, tiling: Tiling, outer: TileShape
) -> Recipe:
    """As `forward`, backward; `parts` are the offsets of dz, `before` and the reductions."""
    kernels, size, D = library(kind), kind.itemsize, layer.num_directions
    vector, cell, H, P = kernels.isa.vector_bytes, layer.cell, layer.hidden_size, layer.output_size
    layout, features = CellLayout(cell), (layer.input_size, H, P, operand_size(layer))
    wide_i, wide_h, wide_p, wide_k = (_vectors(kind, n) for n in features)
    shared, (window_rows, held_rows) = shared_in_backward(layer, rows), window(layer, rows)
    # A column vector has groups of terms; those of W_ih begin anew with each gate.
    packed_column = 0 if cut.direct else len(cell.gates) * -(-H // kind.terms) * vector
    packed_out = -(-P // kind.terms) * vector if layer.proj_size and not cut.direct else 0
    packed = (wide_k + wide_i) * packed_column + wide_h * packed_out
    packed += max(wide_i, wide_h, wide_p) * vector
    longest = max(run.blocks for run in layout.runs) * H
    segment = -(-min(SEGMENT, max(longest, P)) // outer.rows) * outer.rows
    # After the packed blocks of dz and of an operand, one vector for the sums of db.
    reduction = _aligned(segment * REDUCTION_ROWS * size)
    reduction += (REDUCTION_ROWS * outer.vectors + 1) * vector
    if kind.terms > 1:
        # Rows of grad_x are computed there before they are rounded.
        reduction = max(reduction, ROW_BLOCK * wide_i * vector)
    grad_h = _aligned(D * packed)
    grad_states = grad_h + _aligned(D * rows.B * P * kind.computed)
    grad_out = grad_states + _aligned((len(cell.states) - 1) * D * rows.B * H * kind.computed)
    grad_out_size = ROW_BLOCK * wide_h * vector if layer.proj_size else 0
    wide = layout.dz_blocks * H + layer.proj_size
    fixed = {
        **_problem(layer, rows, cut, tiling),
        "dz_columns": wide,
        "window": window_rows,
        "packed_column": packed_column,
        "packed_out": packed_out,
        "packed": packed,
        "grad_h": grad_h,
        "grad_states": grad_states,
        "grad_out": grad_out,
        "grad_out_size": grad_out_size,
        "outer_rows": outer.rows,
        "outer_vectors": outer.vectors,
        "reduction_size": _aligned(reduction),
    }
    sync, names = _sync_words(layer, cut.threads), BackwardArguments._fields
    words = argument_count(BackwardArguments, layer.cell) - len(names) + sync
    block = argument_block(names, fixed, words)
    dz = grad_out + max(cut.threads, D) * grad_out_size
    before = _aligned(dz + D * held_rows * wide * size)
    own = _aligned(before + D * rows.N * 8)
    scratch = (own + cut.threads * fixed["reduction_size"]) // size
    late = late_threads_for((__name__, "backward", kind.dtype), layer, rows, cut.threads, shared)
    parts = dz, before, own
    assert kernels.backward is not None, "`why_not` declines calls that need a gradient"
    return Recipe(kernels.backward, cut.threads, block, scratch, 0, sync, parts, late)


def places(recipe: Recipe, recurrent: bool) -> list[tuple[int, int]]:
    """The index of each address of a part of a backward pass's scratch, and its offset in bytes.

    `recurrent` says whether dW_hh is needed.
    """
    dz, before, reduction = recipe.parts
    fields = BackwardArguments._fields
    found = [("scratch", 0), ("dz_buffer", dz), ("reduction", reduction)]
    found += [("before", before)] if recurrent else []
    return [(fields.index(name), offset) for name, offset in found]


def _problem(layer: LayerSpec, rows: Rows, cut: Plan, tiling: Tiling) -> dict[str, int]:
    """The arguments that both kernels take."""
    return {
        "T": rows.T,
        "B": rows.B,
        "N": rows.N,
        "I": layer.input_size,
        "H": layer.hidden_size,
        "P": layer.output_size,
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
    return -(-features // library(kind).isa.lanes(kind.computed))


def _rows_in_place(kind: Kind, threads: int) -> int:
    return rows_in_place(library(kind).isa.vector_bytes, threads)


def _sync_words(layer: LayerSpec, threads: int) -> int:
    """Words for synchronisation: an area for the team, one per direction, and their alignment."""
    if threads == 1:
        return 0
    return (area_bytes(threads) * (1 + layer.num_directions) + LINE) // 8


def _aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // LINE) * LINE
