"""The forward kernel: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), step by step.

The input projection W_ih x_t + b may be computed for all steps at once, before the first
(`hoist`). For shapes see `ForwardArguments`; distances of rows are in elements, and the caller owns
all memory.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.arguments import ForwardArguments
from rnnjit_tvm.tensorir import Module, address, call, integer, least, loop, pointer, when
from rnnjit_tvm.time_loop import (
    Slice,
    Steps,
    add_entries,
    forward_arguments,
    of_direction,
    partition,
    slice_of,
)

#: Rows that the hoisted projection computes at a time, so that they stay in a core's own cache.
_ROW_BLOCK = 64
#: The forward kernel's phases; its threads synchronise after each.
PHASES = ["forward_pack", "forward_project", "forward_recur"]


def add_forward(module: Module) -> None:
    """Add the phases of the forward kernel, and its entries."""
    _add_pack(module)
    _add_project(module)
    _add_recur(module)
    add_entries(module, "forward", PHASES)


def _add_pack(module: Module) -> None:
    """Pack W_ih and W_hh of every direction, and the sum of the biases."""
    lanes, size = module.lanes, module.lanes.bits // 8

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = forward_arguments(block)
        wide = T.bind(lanes.vectors(a.H))
        with partition(a.D * wide, thread, threads) as index:
            unit = T.bind(thread + index * threads)
            d = T.bind(T.truncdiv(unit, wide))
            vector = T.bind(unit - d * wide)
            column = T.bind(vector * lanes.count)
            count = least(a.H - column, integer(lanes.count))
            scratch = pointer(a.scratch, lanes.dtype)
            panel = T.bind(d * a.packed + vector * a.panel)
            inner = T.bind(panel + a.I * lanes.count)
            for name, k, to in (("w_ih", a.I, panel), ("w_hh", a.H, inner)):
                w = pointer(T.bind(of_direction(a, d, name) + column * k * size), lanes.dtype)
                source = address(w, integer(0))
                call("pack_transposed", source, address(scratch, to), k, k, count)
            bias = T.bind(d * a.packed + wide * a.panel + column)
            T.buffer_store(scratch, lanes.zeros(), [lanes.at(bias)])
            b_ih, b_hh = (T.bind(of_direction(a, d, name)) for name in ("b_ih", "b_hh"))
            with when(b_ih != 0):
                sources = [address(pointer(b, lanes.dtype), column) for b in (b_ih, b_hh)]
                call("pack_bias", *sources, address(scratch, bias), count)

    module.add_phase("forward_pack", body)


def _add_project(module: Module) -> None:
    """The input projection of all rows, if it is hoisted: y = x W_ih^T + b."""
    lanes = module.lanes

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = forward_arguments(block)
        x, y = pointer(a.x, lanes.dtype), pointer(a.y, lanes.dtype)
        scratch, ld = pointer(a.scratch, lanes.dtype), T.bind(a.D * a.H)
        blocks = T.truncdiv(a.N + (_ROW_BLOCK - 1), integer(_ROW_BLOCK))
        with when(a.hoist != integer(0)), partition(blocks, thread, threads) as index:
            row = T.bind((thread + index * threads) * _ROW_BLOCK)
            rows = least(a.N - row, integer(_ROW_BLOCK))
            with loop(integer(0), a.D) as d:
                base = T.bind(d * a.packed)
                inputs = address(x, row * a.I)
                pointers = (
                    address(scratch, base + lanes.vectors(a.H) * a.panel),
                    inputs,
                    inputs,
                    address(scratch, base),
                    address(y, row * ld + d * a.H),
                )
                zero, one = integer(0), integer(1)
                sizes = (zero, a.I, one, a.I, zero, zero, a.panel, ld, rows, a.H)
                call("block", *pointers, *sizes)

    module.add_phase("forward_project", body)


def _add_recur(module: Module) -> None:
    """The time loop of a thread's slices."""

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = forward_arguments(block)
        with partition(a.D * a.slices, thread, threads) as index:
            part = slice_of(a, T.bind(thread + index * threads))
            steps = Steps(a)
            with loop(integer(0), a.T) as s:
                _step(module, a, part, steps, s)

    module.add_phase("forward_recur", body)


def _step(module: Module, a: ForwardArguments, part: Slice, steps: Steps, s: Any) -> None:
    """The s-th step of a slice: its rows of y, and of h_n where sequences end."""
    dtype, d, H = module.lanes.dtype, part.d, a.H
    y, h_n, h0 = (pointer(each, dtype) for each in (a.y, a.h_n, a.h0))
    t = T.bind(T.Select(d == 0, s, a.T - 1 - s))
    onward = T.bind(T.Select(d == 0, integer(1), integer(-1)))
    ld = T.bind(a.D * H)
    row, size = steps.start(t), steps.size(t)
    rows = part.count(size)
    linked = part.count(T.min(steps.size(t - onward), size))
    held = part.count(T.min(steps.size(t + onward), size))
    before = T.bind(steps.start(T.max(t - onward, integer(0))) * ld + d * H)
    with when(linked > 0):
        states = address(y, before + part.low * ld)
        _affine(module, a, part, row + part.low, linked, states, ld)
    with when(rows > linked):
        first = part.row(linked)
        states = address(h0, (d * a.B + first) * H)
        _affine(module, a, part, row + first, rows - linked, states, H)
    with when(rows > 0):
        here = address(y, (row + part.low) * ld + d * H)
        call("activate", here, ld * part.stride, rows, H)
    with when(rows > held):
        first = part.row(held)
        source = address(y, (row + first) * ld + d * H)
        to = address(h_n, (d * a.B + first) * H)
        call("copy", source, to, ld * part.stride, H * part.stride, rows - held, H)


def _affine(
    module: Module,
    a: ForwardArguments,
    part: Slice,
    row: Any,
    rows: Any,
    states: Any,
    ld_states: Any,
) -> None:
    """Compute y = x W_ih^T + b + h W_hh^T for `rows` rows of a slice, from row `row` on."""
    lanes, stride = module.lanes, part.stride
    scratch, y = pointer(a.scratch, lanes.dtype), pointer(a.y, lanes.dtype)
    base, ld = T.bind(part.d * a.packed), T.bind(a.D * a.H)
    at = T.bind(row * ld + part.d * a.H)
    hoist, size = T.bind(a.hoist != integer(0)), lanes.bits // 8
    bias = a.scratch + (base + lanes.vectors(a.H) * a.panel) * size
    init = T.bind(T.Select(hoist, a.y + at * size, bias))
    ld_init = T.bind(T.Select(hoist, ld * stride, integer(0)))
    inputs = T.bind(T.Select(hoist, integer(0), a.I))
    pointers = (
        address(pointer(init, lanes.dtype), integer(0)),
        address(pointer(a.x, lanes.dtype), row * a.I),
        states,
        address(scratch, base + (a.I - inputs) * lanes.count),
        address(y, at),
    )
    one, ld_x, ld_out = integer(1), a.I * stride, ld * stride
    sizes = (ld_init, ld_x, one, inputs, ld_states * stride, a.H, a.panel, ld_out, rows, a.H)
    call("block", *pointers, *sizes)
