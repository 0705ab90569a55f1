"""From a layer and a plan to a kernel's argument block: all that does not depend on tensors."""

from __future__ import annotations

from typing import NamedTuple

from rnnjit import LayerSpec, Rows
from rnnjit.codegen.argument_block import argument_block
from rnnjit.codegen.cell_layout import CellLayout, operand_size
from rnnjit.codegen.forward_call import Recipe
from rnnjit.codegen.kernel import LINE, Kind
from rnnjit.codegen.plan import REDUCTION_ROWS, ROW_BLOCK, SEGMENT, Z_ROWS, Plan, plan, window
from rnnjit.codegen.row_slices import late_threads_for, shared_in_backward
from rnnjit_tvm.arguments import (
    BackwardArguments,
    ForwardArguments,
    area_bytes,
    argument_count,
)
from rnnjit_tvm.library import library
from rnnjit_tvm.tile_shapes import tile_shapes

#: Bytes of input projections that are computed before their steps, so that they stay in a cache,
#: and the fewest rows of them.
_WINDOW_BYTES, _LEAST_WINDOW = 1 << 20, 64


def forward(kind: Kind, layer: LayerSpec, rows: Rows, threads: int) -> Recipe:
    """How a layer's forward kernel is called for some rows, on at most `threads` threads."""
    cut = plan(layer, rows, threads, _vectors(kind, layer.hidden_size))
    return forward_by(kind, layer, rows, cut)


def forward_by(kind: Kind, layer: LayerSpec, rows: Rows, cut: Plan) -> Recipe:
    """How a layer's forward kernel is called for some rows, by a plan."""
    kernels, size, D = library(kind), kind.itemsize, layer.num_directions
    sizes = _ForwardSizes.of(kind, layer, cut)
    areas, hoisted = max(cut.threads, D), _hoisted_rows(layer, rows, cut, sizes, size)
    z = _aligned(D * sizes.packed, size)
    hoisted_at = z + _aligned(areas * sizes.z_size, size)
    window_rows = min(hoisted, _window_rows(layer, rows, sizes, size)) if hoisted else rows.N
    fixed = {
        **_problem(layer, rows, cut),
        "hoist": int(cut.hoist),
        "panel": sizes.panel,
        "panel_out": sizes.panel_out,
        "packed": sizes.packed,
        "z": z,
        "z_size": sizes.z_size,
        "z_rows": sizes.z_rows,
        "hoisted": hoisted_at,
        "hoisted_size": hoisted * sizes.row,
        "window": window_rows,
    }
    scratch, sync = hoisted_at + D * hoisted * sizes.row, _sync_words(layer, cut.threads)
    names = ForwardArguments._fields
    words = argument_count(ForwardArguments, layer.cell) - len(names) + sync
    block = argument_block(names, fixed, words)
    late = late_threads_for((__name__, "forward", size), layer, rows, cut.threads)
    return Recipe(kernels.forward, cut.threads, block, scratch, 0, sync, (), late)


class _ForwardSizes(NamedTuple):
    """Elements of parts of the forward kernel's scratch memory, see `ForwardArguments`.

    Attributes:
        panel, panel_out, packed: of packed weights.
        z_size, z_rows: of the memory for a few rows.
        row: of one row of pre-activations.
    """

    panel: int
    panel_out: int
    packed: int
    z_size: int
    z_rows: int
    row: int

    @staticmethod
    def of(kind: Kind, layer: LayerSpec, cut: Plan) -> _ForwardSizes:
        """Those of a layer."""
        lanes, cell = _lanes(kind), CellLayout(layer.cell)
        wide_h, wide_p = _vectors(kind, layer.hidden_size), _vectors(kind, layer.output_size)
        panel = (layer.input_size + operand_size(layer)) * lanes
        parts, row = 1 + cell.apart, wide_h * cell.gates * lanes
        packed = wide_h * cell.gates * (panel + parts * lanes)
        panel_out = layer.hidden_size * lanes if layer.proj_size else 0
        if layer.proj_size:
            packed += wide_p * (panel_out + lanes)
        z_rows = max(1, min(max(cut.slice_rows, cut.tail), Z_ROWS))
        z_size = z_rows * (parts * row + (wide_h * lanes if layer.proj_size else 0))
        return _ForwardSizes(panel, panel_out, packed, _aligned(z_size, 4), z_rows, row)


def _window_rows(layer: LayerSpec, rows: Rows, sizes: _ForwardSizes, size: int) -> int:
    """Rows whose input projection is computed before their steps."""
    if layer.num_directions == 2:
        return rows.N  # the directions begin at opposite ends
    return max(_LEAST_WINDOW, _WINDOW_BYTES // (sizes.row * size))


def _hoisted_rows(layer: LayerSpec, rows: Rows, cut: Plan, sizes: _ForwardSizes, size: int) -> int:
    """Rows of the memory for input projections; none if they are computed by steps."""
    if not (cut.hoist or cut.parts > 1):
        return 0
    return min(rows.N, max(_window_rows(layer, rows, sizes, size), rows.B))


def backward(kind: Kind, layer: LayerSpec, rows: Rows, threads: int) -> Recipe:
    """As `forward`, backward; `parts` are the byte offsets of dz, `before` and the reductions."""
    kernels, size, D, lanes = library(kind), kind.itemsize, layer.num_directions, _lanes(kind)
    cell, H, P = layer.cell, layer.hidden_size, layer.output_size
    shared, (window_rows, held_rows) = shared_in_backward(layer, rows), window(layer, rows)
    cut = plan(layer, rows, threads, _vectors(kind, H), shared)
    wide_i, wide_h, wide_p = (_vectors(kind, n) for n in (layer.input_size, H, P))
    wide_k = _vectors(kind, operand_size(layer))
    panel = len(cell.gates) * H * lanes
    panel_out = P * lanes if layer.proj_size else 0
    packed = (wide_k + wide_i) * panel + wide_h * panel_out
    tile_rows, tile_vectors = tile_shapes(kernels.isa)[0]
    longest = max(run.blocks for run in CellLayout(cell).runs) * H
    segment = -(-min(SEGMENT, max(longest, P)) // tile_rows) * tile_rows
    # After the packed blocks of dz and of an operand, one vector for the sums of db.
    reduction = segment * REDUCTION_ROWS + (REDUCTION_ROWS * tile_vectors + 1) * lanes
    zeros = max(wide_i, wide_h, wide_p) * lanes
    grad_h = _aligned(D * packed + zeros, size)
    grad_states = grad_h + _aligned(D * rows.B * P, size)
    grad_out = grad_states + _aligned((len(cell.states) - 1) * D * rows.B * H, size)
    grad_out_size = ROW_BLOCK * wide_h * lanes if layer.proj_size else 0
    wide = CellLayout(cell).dz_blocks * H + layer.proj_size
    fixed = {
        **_problem(layer, rows, cut),
        "dz_columns": wide,
        "window": window_rows,
        "panel": panel,
        "panel_out": panel_out,
        "packed": packed,
        "grad_h": grad_h,
        "grad_states": grad_states,
        "grad_out": grad_out,
        "grad_out_size": grad_out_size,
        "reduction_size": _aligned(reduction, size),
    }
    sync, names = _sync_words(layer, cut.threads), BackwardArguments._fields
    words = argument_count(BackwardArguments, cell) - len(names) + sync
    block = argument_block(names, fixed, words)
    dz = grad_out + max(cut.threads, D) * grad_out_size
    before = _aligned(dz + D * held_rows * wide, size)
    own = _aligned(before + D * rows.N * 8 // size, size)
    scratch = own + cut.threads * fixed["reduction_size"]
    late = late_threads_for((__name__, "backward", size), layer, rows, cut.threads, shared)
    parts = dz * size, before * size, own * size
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


def _problem(layer: LayerSpec, rows: Rows, cut: Plan) -> dict[str, int]:
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
    }


def _lanes(kind: Kind) -> int:
    """Elements of a vector."""
    return library(kind).isa.lanes(kind.itemsize)


def _vectors(kind: Kind, features: int) -> int:
    """Vectors that hold some features of a row."""
    return -(-features // _lanes(kind))


def _sync_words(layer: LayerSpec, threads: int) -> int:
    """Words for synchronisation: an area for the team, one per direction, and their alignment."""
    if threads == 1:
        return 0
    return (area_bytes(threads) * (1 + layer.num_directions) + LINE) // 8


def _aligned(elements: int, size: int) -> int:
    """The next multiple of a cache line, of elements of `size` bytes."""
    line = LINE // size
    return -(-elements // line) * line
