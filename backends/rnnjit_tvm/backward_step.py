"""One step of the backward pass: dz, and the gradients of the states before, of some rows."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.plan import ROW_BLOCK
from rnnjit_tvm.arguments import BackwardArguments
from rnnjit_tvm.tensorir import Lanes, Module, address, call, either, integer
from rnnjit_tvm.time_loop import Masked, affine, backward_arguments, blocks, each_vector


def add_step(module: Module, layout: CellLayout) -> None:
    """PrimFunc `backward_step`, and what it calls.

    `backward_step(block, d, first, last, stride, row, b, rows, before, fresh, place)` computes dz
    of `rows` rows, `stride` apart, and passes gradients on. The first of them is row `row` of all
    and `b` of the batch; `before` is the row of the step before that precedes it, unless the states
    before are the initial ones (`fresh`). `place` numbers the memory for gradients before the
    projection.
    """
    _add_projected(module, layout)
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, first, last, stride, row, b, rows, before, fresh, place = sizes
        a, own = backward_arguments(block), address(block, integer(0))
        with T.If(a.P != a.H):
            with T.Then():
                call("backward_projected", own, d, stride, row, b, rows, before, fresh, place)
            with T.Else():
                given = lanes.after(a.grad_y, (row * a.D + d) * a.H)
                grad_out = either(a.grad_y != 0, given, integer(0))
                call(
                    *("cell_step_backward", own, d, row, b, stride, rows, first, last),
                    *(before, fresh, grad_out, a.D * a.H * stride, zeros_at(lanes, a)),
                )

    names = ["d", "first", "last", "stride", "row", "b", "rows", "before", "fresh", "place"]
    module.add("backward_step", ["block"], names, body, dtype="int64")


def zeros_at(lanes: Lanes, a: BackwardArguments) -> Any:
    """The address of the row of zeros in the scratch memory."""
    return lanes.after(a.scratch, a.D * a.packed)


def states_gradient_at(lanes: Lanes, a: BackwardArguments) -> Any:
    """The address of the gradient of the first state, which runs through the steps."""
    return either(a.grad_h0 != 0, a.grad_h0, lanes.after(a.scratch, a.grad_h))


def _add_projected(module: Module, layout: CellLayout) -> None:
    """PrimFunc `backward_projected(block, d, stride, row, b, rows, before, fresh, place)`.

    A step of a layer with a projection: the gradient of h first, which dW_hr needs as well. It is
    stored behind dz of each row. That of the output before the projection follows from it, in
    blocks of rows.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, stride, row, b, rows, before, fresh, place = sizes
        a, own_block, zero = backward_arguments(block), address(block, integer(0)), integer(0)
        wide_p, wide_i, wide_h = (T.bind(lanes.vectors(n)) for n in (a.P, a.I, a.H))
        wide_k = wide_p if layout.cell.has_product else zero
        w_hr = lanes.after(a.scratch, d * a.packed + (wide_k + wide_i) * a.panel)
        ld_out, zeros = T.bind(wide_h * lanes.count), zeros_at(lanes, a)
        out = lanes.after(a.scratch, a.grad_out + place * a.grad_out_size)
        own, ld = states_gradient_at(lanes, a), T.bind(a.dz_columns * stride)
        given = T.bind(a.grad_y != 0)
        with blocks(zero, rows, ROW_BLOCK) as (done, n):
            row_now, b_now = T.bind(row + done * stride), T.bind(b + done * stride)
            place_of_row = T.bind((d * a.N + row_now) * a.dz_columns + a.dz_columns - a.P)
            grad = lanes.after(a.dz, place_of_row)
            source = lanes.memory(lanes.after(own, (d * a.B + b_now) * a.P))
            of_step = lanes.after(a.grad_y, (row_now * a.D + d) * a.P)
            other = lanes.memory(either(given, of_step, zeros))
            ld_other = either(given, a.D * a.P * stride, zero)
            to = lanes.memory(grad)

            def add(r: Any, v: Any, masked: Masked) -> None:
                at = T.bind(v * lanes.count)
                first = masked.load(source, r * (a.P * stride) + at)
                masked.store(to, r * ld + at, first + masked.load(other, r * ld_other + at))

            each_vector(lanes, n, (zero, wide_p), a.P, add)
            affine(
                *(lanes, (zeros, zero), (grad, ld, a.P), (grad, zero, zero), (w_hr, a.panel_out)),
                *((out, ld_out), (n, (zero, wide_h), a.H)),
            )
            call(
                *("cell_step_backward", own_block, d, row_now, b_now, stride, n, zero, wide_h),
                *(before + done * stride, fresh, out, ld_out, zeros),
            )

    names = ["d", "stride", "row", "b", "rows", "before", "fresh", "place"]
    module.add("backward_projected", ["block"], names, body, dtype="int64")
