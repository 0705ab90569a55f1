"""The backward kernel: the gradients of the pre-activations, step by step.

    dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh

where g_t is grad_h_n in a sequence's last step, and g before its first step is grad_h0. What
follows from dz alone is left to one GEMM each (`rnnjit.recurrence`).
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.arguments import BackwardArguments
from rnnjit_tvm.tensorir import Module, address, call, integer, least, loop, pointer, when
from rnnjit_tvm.walk import Slice, Steps, add_entries, backward_arguments, share, slice_of

#: The backward kernel's phases, between which its threads meet.
PHASES = ["backward_pack", "backward_recur"]


def add_backward(module: Module) -> None:
    """The phases of the backward kernel, and its entries."""
    _add_pack(module)
    _add_recur(module)
    add_entries(module, "backward", PHASES)


def _add_phase(module: Module, name: str, body: Any) -> None:
    module.add(name, ["block"], ["thread", "threads"], body, dtype="int64")


def _add_pack(module: Module) -> None:
    """Pack W_hh of every direction, transposed, and a row of zeros."""
    lanes = module.lanes

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = backward_arguments(block)
        wide = T.bind(T.truncdiv(a.H + (lanes.count - 1), integer(lanes.count)))
        scratch = pointer(a.scratch, lanes.dtype)
        with share(a.D * wide, thread, threads) as index:
            unit = T.bind(thread + index * threads)
            d = T.bind(T.truncdiv(unit, wide))
            vector = T.bind(unit - d * wide)
            column = T.bind(vector * lanes.count)
            count = least(a.H - column, integer(lanes.count))
            zeros = T.bind(d * a.packed + wide * a.panel + column)
            T.buffer_store(scratch, lanes.zeros(), [lanes.at(zeros)])
            w = T.bind(T.Select(d == 0, a.w_hh_0, a.w_hh_1))
            source = address(pointer(w, lanes.dtype), column)
            to = address(scratch, d * a.packed + vector * a.panel)
            call("pack", source, to, a.H, a.H, count)

    _add_phase(module, "backward_pack", body)


def _add_recur(module: Module) -> None:
    """The time loop of a thread's slices."""

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = backward_arguments(block)
        with share(a.D * a.slices, thread, threads) as index:
            part = slice_of(a, T.bind(thread + index * threads))
            steps = Steps(a)
            with loop(integer(0), a.T) as s:
                _step(module, a, part, steps, s)

    _add_phase(module, "backward_recur", body)


def _step(module: Module, a: BackwardArguments, part: Slice, steps: Steps, s: Any) -> None:
    """The s-th step that a slice takes: its rows of dz, and of grad_h0 where it is their first."""
    dtype, d, H = module.lanes.dtype, part.d, a.H
    dz, grad_h0 = pointer(a.dz, dtype), pointer(a.grad_h0, dtype)
    t = T.bind(T.Select(d == 0, a.T - 1 - s, s))
    onward = T.bind(T.Select(d == 0, integer(1), integer(-1)))
    ld = T.bind(a.D * H)
    row, size = steps.start(t), steps.size(t)
    rows = part.count(size)
    linked = part.count(T.min(steps.size(t + onward), size))
    begun = part.count(T.min(steps.size(t - onward), size))
    later = T.bind(steps.start(T.max(t + onward, integer(0))) * ld + d * H)
    here = T.bind((row + part.low) * ld + d * H)
    with when(linked > 0):
        source = address(dz, later + part.low * ld)
        _through(module, a, part, source, address(dz, here), ld, linked)
    with when(rows > linked):
        _last_states(module, a, part, row, linked, rows - linked)
    with when(rows > 0):
        _pointwise(module, a, part, here, rows)
    with when(rows > begun):
        first = part.row(begun)
        source = address(dz, (row + first) * ld + d * H)
        to = address(grad_h0, (d * a.B + first) * H)
        _through(module, a, part, source, to, H, rows - begun)


def _through(
    module: Module, a: BackwardArguments, part: Slice, source: Any, to: Any, ld_to: Any, rows: Any
) -> None:
    """`to = dz W_hh` for `rows` of a slice's rows."""
    lanes, every = module.lanes, part.every
    scratch = pointer(a.scratch, lanes.dtype)
    wide = T.truncdiv(a.H + (lanes.count - 1), integer(lanes.count))
    base = T.bind(part.d * a.packed)
    ld = T.bind(a.D * a.H * every)
    pointers = (address(scratch, base + wide * a.panel), source, source, address(scratch, base), to)
    sizes = (integer(0), ld, a.H, integer(0), integer(0), a.panel, ld_to * every)
    call("block", *pointers, *sizes, rows, a.H)


def _last_states(
    module: Module, a: BackwardArguments, part: Slice, row: Any, first: Any, rows: Any
) -> None:
    """Dz of rows whose last state this step has: as yet, the gradient of h_n."""
    dtype, d, H = module.lanes.dtype, part.d, a.H
    wide = T.truncdiv(H + (module.lanes.count - 1), integer(module.lanes.count))
    b = part.row(first)
    present = T.bind(a.grad_h_n != 0)
    zeros = T.bind(d * a.packed + wide * a.panel)
    size = module.lanes.bits // 8
    source = T.bind(
        T.Select(present, a.grad_h_n + (d * a.B + b) * H * size, a.scratch + zeros * size)
    )
    ld_source = T.bind(T.Select(present, H * part.every, integer(0)))
    ld = T.bind(a.D * H)
    to = address(pointer(a.dz, dtype), (row + b) * ld + d * H)
    call(
        "copy", address(pointer(source, dtype), integer(0)), to, ld_source, ld * part.every, rows, H
    )


def _pointwise(module: Module, a: BackwardArguments, part: Slice, here: Any, rows: Any) -> None:
    """Dz = (dz + grad_y) activation'(y), in place."""
    dtype, size = module.lanes.dtype, module.lanes.bits // 8
    wide = T.truncdiv(a.H + (module.lanes.count - 1), integer(module.lanes.count))
    present = T.bind(a.grad_y != 0)
    zeros = T.bind(part.d * a.packed + wide * a.panel)
    grad = T.bind(T.Select(present, a.grad_y + here * size, a.scratch + zeros * size))
    ld = T.bind(a.D * a.H * part.every)
    ld_grad = T.bind(T.Select(present, ld, integer(0)))
    pointers = [address(pointer(each, dtype), here) for each in (a.dz, a.y)]
    pointers.append(address(pointer(grad, dtype), integer(0)))
    call("activate_gradient", *pointers, ld, ld_grad, rows, a.H, a.cell)
