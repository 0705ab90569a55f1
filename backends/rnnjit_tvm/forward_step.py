"""One step of the forward pass, for some rows and hidden units of a direction."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit_tvm.preparation import bias_at, projection_at
from rnnjit_tvm.tensorir import Module, address, call, either, integer, most, when
from rnnjit_tvm.time_loop import affine, blocks, columns_of_x, forward_arguments

#: Bytes of pre-activations that a step computes before it applies the cell to them: they stay in a
#: core's first-level cache, beside the weights that stream through it.
_BLOCK_BYTES = 16384


def add_step(module: Module, layout: CellLayout, widest: int) -> None:
    """PrimFunc `forward_step`, and what it calls.

    `forward_step(block, d, first, last, hoisted, stride, row, rows, h, ld_h, b, fresh, zx, place)`
    takes a `ForwardArguments`, the direction, a range of vectors of the hidden units, whether the
    input projection was computed before (`hoisted`), then `rows` rows, `stride` apart, the first of
    which is row `row` of all and `b` of the batch, the states before at `h`, whether these are the
    initial ones (`fresh`), the address `zx` where the projection of row 0 would be, and the number
    `place` of the memory for pre-activations (see `ForwardArguments.z`).

    Args:
        module: what to add it to.
        layout: of the cell.
        widest: most vectors of the tile with the most rows.
    """
    _add_gates(module, layout)
    _add_project_out(module, layout)
    _add_step(module, layout, widest)


def _add_step(module: Module, layout: CellLayout, widest: int) -> None:
    lanes, G, parts = module.lanes, layout.gates, 1 + layout.apart
    # As many units as fit, whose vectors fill the widest tiles.
    whole = next(units for units in range(1, widest + 1) if units * G % widest == 0)
    unit_bytes = whole * G * lanes.count * lanes.itemsize

    def body(block: Any, *sizes: Any) -> None:
        d, first, last, hoisted, stride, row, rows, h, ld_h, b, fresh, zx, place = sizes
        a, own = forward_arguments(block), address(block, integer(0))
        wide = T.bind(lanes.vectors(a.H) * lanes.count)
        ld_z, local = T.bind(wide * G), lanes.after(a.scratch, a.z + place * a.z_size)
        zh = lanes.after(local, a.z_rows * ld_z * (parts - 1))
        behind = lanes.after(local, a.z_rows * ld_z * parts)
        with blocks(integer(0), rows, a.z_rows) as (done, n):
            row_now, b_now = T.bind(row + done * stride), T.bind(b + done * stride)
            h_now = lanes.after(h, done * ld_h)
            z = either(hoisted != 0, lanes.after(zx, row_now * ld_z), local)
            ld = either(hoisted != 0, ld_z * stride, ld_z)
            record = T.bind(row_now * a.D + d)
            kept = T.bind(a.outputs != 0)
            out = either(kept, lanes.after(a.outputs, record * a.H), behind)
            ld_out = either(kept, a.D * a.H * stride, wide)
            projected = T.bind(a.P != a.H)
            out = either(projected, out, lanes.after(a.y, record * a.H))
            ld_out = either(projected, ld_out, a.D * a.H * stride)
            some = T.bind(most(T.truncdiv(integer(_BLOCK_BYTES), n * unit_bytes), integer(1)))
            with blocks(first, last, T.bind(some * whole)) as (low, count):
                high = T.bind(low + count)
                call(
                    *("forward_gates", own, d, low, high, hoisted, stride, row_now, n),
                    *(h_now, ld_h, z, ld, zh),
                )
                call(
                    *("cell_step", own, d, row_now, b_now, stride, n, low, high),
                    *(z, ld, zh, ld_z, h_now, ld_h, fresh, out, ld_out),
                )
            with when(projected):
                call("project_out", own, d, stride, row_now, n, out, ld_out)

    names = ["d", "first", "last", "hoisted", "stride", "row", "rows", "h", "ld_h", "b", "fresh"]
    module.add("forward_step", ["block"], [*names, "zx", "place"], body, dtype="int64")


def _add_gates(module: Module, layout: CellLayout) -> None:
    """PrimFunc `forward_gates`: the pre-activations of `rows` rows.

    `forward_gates(block, d, first, last, hoisted, stride, row, rows, h, ld_h, z, ld, zh)` writes
    them to `z` and, where zh is used apart, to `zh`.
    """
    lanes, G = module.lanes, layout.gates

    def body(block: Any, *sizes: Any) -> None:
        d, first, last, hoisted, stride, row, rows, h, ld_h, z, ld, zh = sizes
        a, zero = forward_arguments(block), integer(0)
        base, bias = lanes.after(a.scratch, d * a.packed), bias_at(lanes, layout, a, d)
        columns = T.bind(lanes.vectors(a.H) * (G * lanes.count))
        w_hh, span = lanes.after(base, a.I * lanes.count), (first * G, last * G)
        wide, shape = columns_of_x(a, layout.cell), (rows, span, columns)
        x, ld_x = lanes.after(a.x, row * wide), T.bind(wide * stride)
        if layout.apart or not layout.cell.has_product:
            with when(hoisted == 0):
                affine(
                    *(lanes, (bias, zero), (x, ld_x, a.I), (x, zero, zero), (base, a.panel)),
                    *((z, ld), shape),
                )
            if layout.apart:
                affine(
                    *(lanes, (lanes.after(bias, columns), zero), (h, ld_h, a.P), (h, zero, zero)),
                    *((w_hh, a.panel), (zh, columns), shape),
                )
            return
        ready = T.bind(hoisted != 0)
        init, ld_init = either(ready, z, bias), either(ready, ld, zero)
        inputs, weights = either(ready, zero, a.I), either(ready, w_hh, base)
        affine(
            *(lanes, (init, ld_init), (x, ld_x, inputs), (h, ld_h, a.P), (weights, a.panel)),
            *((z, ld), shape),
        )

    names = ["d", "first", "last", "hoisted", "stride", "row", "rows", "h", "ld_h", "z", "ld", "zh"]
    module.add("forward_gates", ["block"], names, body, dtype="int64")


def _add_project_out(module: Module, layout: CellLayout) -> None:
    """PrimFunc `project_out(block, d, stride, row, rows, out, ld_out)`: h = W_hr out.

    Of `rows` rows, `stride` apart, from row `row` on; `out` has their outputs.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, stride, row, rows, out, ld_out = sizes
        a, zero = forward_arguments(block), integer(0)
        y, ld_y = lanes.after(a.y, (row * a.D + d) * a.P), T.bind(a.D * a.P * stride)
        weights, wide = projection_at(lanes, layout, a, d), T.bind(lanes.vectors(a.P))
        zeros = lanes.after(weights, wide * a.panel_out)
        affine(
            *(lanes, (zeros, zero), (out, ld_out, a.H), (out, zero, zero), (weights, a.panel_out)),
            *((y, ld_y), (rows, (zero, wide), a.P)),
        )

    names = ["d", "stride", "row", "rows", "out", "ld_out"]
    module.add("project_out", ["block"], names, body, dtype="int64")
