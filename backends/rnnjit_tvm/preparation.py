"""Preparation of the forward kernel: packs the weights and projects the input.

One direction has, in this order: for each vector of hidden units and each gate, a panel of W_ih and
W_hh, `[I + P][lanes]`; the biases, as `[V][G][lanes]`, those of zx and of zh one after the other if
the cell uses them apart, else their sum; and, where there is a projection, the panels of W_hr,
`[H][lanes]`, and a row of zeros. A cell without a recurrent product has neither W_hh nor b_hh.

The first parameters of each PrimFunc are a `ForwardArguments`, the direction `d`, and a range of
vectors of the hidden units, from `first` up to but not including `last`.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.plan import ROW_BLOCK
from rnnjit_tvm.arguments import ForwardArguments
from rnnjit_tvm.tensorir import Lanes, Module, address, call, integer, least, loop, when
from rnnjit_tvm.time_loop import (
    Masked,
    affine,
    blocks,
    columns_of_x,
    forward_arguments,
    of_direction,
)


def add_preparation(module: Module, layout: CellLayout) -> None:
    """Add the PrimFuncs that run before the first step."""
    _add_pack(module, layout)
    _add_pack_out(module, layout)
    _add_project(module, layout)
    _add_prepare(module)


def bias_at(lanes: Lanes, layout: CellLayout, a: ForwardArguments, d: Any) -> Any:
    """The address of a direction's biases."""
    panels = lanes.vectors(a.H) * layout.gates
    return lanes.after(a.scratch, d * a.packed + panels * a.panel)


def projection_at(lanes: Lanes, layout: CellLayout, a: ForwardArguments, d: Any) -> Any:
    """The address of a direction's packed W_hr, which zeros follow."""
    biases = lanes.vectors(a.H) * (layout.gates * (1 + layout.apart) * lanes.count)
    return lanes.after(bias_at(lanes, layout, a, d), biases)


def _add_pack(module: Module, layout: CellLayout) -> None:
    """PrimFunc `pack_columns(block, d, first, last)`: weights and biases."""
    lanes, G = module.lanes, layout.gates

    def body(block: Any, d: Any, first: Any, last: Any) -> None:
        a = forward_arguments(block)
        base, bias = lanes.after(a.scratch, d * a.packed), bias_at(lanes, layout, a, d)
        w_ih, w_hh, b_ih, b_hh = (
            of_direction(a, d, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")
        )
        behind = T.bind(lanes.vectors(a.H) * (G * lanes.count))
        matrices = [(w_ih, a.I, integer(0))]
        if layout.cell.has_product:
            matrices.append((w_hh, a.P, a.I * lanes.count))
        with loop(first, last) as v, loop(integer(0), integer(G)) as gate:
            count = least(a.H - v * lanes.count, integer(lanes.count))
            row, panel = T.bind(gate * a.H + v * lanes.count), T.bind(v * G + gate)
            to = lanes.after(base, panel * a.panel)
            for w, k, start in matrices:
                source = lanes.element(lanes.after(w, row * k))
                call("pack_transposed", source, lanes.element(lanes.after(to, start)), k, k, count)
            masked = Masked(lanes, count)
            x_part, h_part = (lanes.memory(lanes.after(b, row)) for b in (b_ih, b_hh))
            out, zero = lanes.memory(lanes.after(bias, panel * lanes.count)), integer(0)

            def write(x: Any, h: Any, at: Any = zero, out: Any = out) -> None:
                parts = [x, h] if layout.apart else [x + h if layout.cell.has_product else x]
                for part, place in zip(parts, (at, at + behind), strict=False):
                    T.buffer_store(out, part, [lanes.at(place)])

            with T.If(b_ih != 0):
                with T.Then():
                    write(masked.load(x_part, zero), masked.load(h_part, zero))
                with T.Else():
                    write(lanes.zeros(), lanes.zeros())

    module.add("pack_columns", ["block"], ["d", "first", "last"], body, dtype="int64")


def _add_pack_out(module: Module, layout: CellLayout) -> None:
    """PrimFunc `pack_out(block, d, first, last)`: W_hr by vectors of the projected features."""
    lanes = module.lanes

    def body(block: Any, d: Any, first: Any, last: Any) -> None:
        a = forward_arguments(block)
        weights, w_hr = projection_at(lanes, layout, a, d), of_direction(a, d, "w_hr")
        zeros = lanes.memory(lanes.after(weights, lanes.vectors(a.P) * a.panel_out))
        with loop(first, last) as v:
            T.buffer_store(zeros, lanes.zeros(), [lanes.at(v * lanes.count)])
            count = least(a.P - v * lanes.count, integer(lanes.count))
            source = lanes.element(lanes.after(w_hr, v * lanes.count * a.H))
            to = lanes.element(lanes.after(weights, v * a.panel_out))
            call("pack_transposed", source, to, a.H, a.H, count)

    module.add("pack_out", ["block"], ["d", "first", "last"], body, dtype="int64")


def _add_project(module: Module, layout: CellLayout) -> None:
    """PrimFunc `project(block, d, first, last, start, stop, zx)`: W_ih x + b of some rows.

    b is the bias of zx if the cell uses it apart, else the sum of both. `zx` is the address of the
    projection of row 0.
    """
    lanes, G = module.lanes, layout.gates

    def body(block: Any, *sizes: Any) -> None:
        d, first, last, start, stop, zx = sizes
        a = forward_arguments(block)
        base, columns = (
            lanes.after(a.scratch, d * a.packed),
            T.bind(lanes.vectors(a.H) * (G * lanes.count)),
        )
        bias, zero = bias_at(lanes, layout, a, d), integer(0)
        ld_x = columns_of_x(a, layout.cell)
        with blocks(start, stop, ROW_BLOCK) as (row, rows):
            x, to = lanes.after(a.x, row * ld_x), lanes.after(zx, row * columns)
            affine(
                *(lanes, (bias, zero), (x, ld_x, a.I), (x, zero, zero), (base, a.panel)),
                *((to, columns), (rows, (first * G, last * G), columns)),
            )

    names = ["d", "first", "last", "start", "stop", "zx"]
    module.add("project", ["block"], names, body, dtype="int64")


def _add_prepare(module: Module) -> None:
    """PrimFunc `prepare(block, d, first, last, packing, start, stop, zx)`: all for some columns.

    The weights are packed if `packing` is 1.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, first, last, packing, start, stop, zx = sizes
        a, own = forward_arguments(block), address(block, integer(0))
        with when(packing != 0):
            call("pack_columns", own, d, first, last)
            with when(a.P != a.H):
                call("pack_out", own, d, integer(0), lanes.vectors(a.P))
        call("project", own, d, first, last, start, stop, zx)

    names = ["d", "first", "last", "packing", "start", "stop", "zx"]
    module.add("prepare", ["block"], names, body, dtype="int64")
