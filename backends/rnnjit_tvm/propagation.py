"""How gradients pass from one step of the backward pass to the one before it in time."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit_tvm.arguments import BackwardArguments
from rnnjit_tvm.backward_step import states_gradient_at, zeros_at
from rnnjit_tvm.tensorir import Module, address, call, either, integer, loop, when
from rnnjit_tvm.time_loop import Steps, affine, backward_arguments, of_state, part_of


def add_propagation(module: Module, layout: CellLayout) -> None:
    """PrimFuncs `backward_begin`, `backward_propagate` and `backward_initial`."""
    _add_begin(module, len(layout.cell.states))
    _add_propagate(module, layout)
    _add_initial(module)


def _add_begin(module: Module, states: int) -> None:
    """PrimFunc `backward_begin(block, d, first, last, stride, b, rows)`: before a last step.

    The gradients of the last states of `rows` sequences from `b` on.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, first, last, stride, b, rows = sizes
        a, zero = backward_arguments(block), integer(0)
        # The first state of a projected layer is not divided by columns.
        low = either(a.P != a.H, zero, first)
        high = either(a.P != a.H, lanes.vectors(a.P), last)

        def copy(given: Any, own: Any, columns: Any, span: tuple[Any, Any]) -> None:
            place, ld = T.bind((d * a.B + b) * columns), T.bind(columns * stride)
            source = either(given != 0, lanes.after(given, place), zero)
            call("copy_rows", lanes.after(own, place), ld, source, ld, rows, *span, columns)

        copy(a.grad_h_n, states_gradient_at(lanes, a), a.P, (low, high))
        for k in range(1, states):
            given, start = (of_state(block, BackwardArguments, k, n) for n in (2, 3))
            own = lanes.after(a.scratch, a.grad_states, a.D * a.B * a.H * (k - 1))
            copy(given, either(start != 0, start, own), a.H, (first, last))

    names = ["d", "first", "last", "stride", "b", "rows"]
    module.add("backward_begin", ["block"], names, body, dtype="int64")


def _add_propagate(module: Module, layout: CellLayout) -> None:
    """PrimFunc `backward_propagate(block, d, first, last, stride, dz, b, rows)`.

    The gradient that reaches the states before `rows` rows of dz: of sequences from `b` on. It adds
    dz W_hh to what the cell's step left there, if it did. Of a projected layer, which is not
    divided by columns in a step, it computes all P columns if `last` is the number of vectors of
    hidden units.
    """
    lanes = module.lanes
    k = layout.gates if layout.cell.has_product else 0

    def body(block: Any, *sizes: Any) -> None:
        if k == 0 and layout.passes_state:
            T.evaluate(integer(0))  # what the step left there is all
            return
        d, first, last, stride, dz, b, rows = sizes
        a, zero = backward_arguments(block), integer(0)
        whole = T.bind(T.And(a.P != a.H, last == lanes.vectors(a.H)))
        last = either(whole, lanes.vectors(a.P), last)
        to = lanes.after(states_gradient_at(lanes, a), (d * a.B + b) * a.P)
        ld, ld_to = T.bind(a.dz_columns * stride), T.bind(a.P * stride)
        init = (to, ld_to) if layout.passes_state else (zeros_at(lanes, a), zero)
        base = lanes.after(a.scratch, d * a.packed)
        affine(
            *(lanes, init, (dz, ld, a.H * k), (dz, zero, zero), (base, a.panel)),
            *((to, ld_to), (rows, (first, last), a.P)),
        )

    names = ["d", "first", "last", "stride", "dz", "b", "rows"]
    module.add("backward_propagate", ["block"], names, body, dtype="int64")


def _add_initial(module: Module) -> None:
    """PrimFunc `backward_initial(block, task, tasks)`: a task's columns of grad_h0.

    It is the gradient that the first step of each sequence passes on: in direction 0 step 0, in
    direction 1 the step at which the sequence ends.
    """
    lanes = module.lanes

    def body(block: Any, task: Any, count: Any) -> None:
        a, own, zero, one = (
            backward_arguments(block),
            address(block, integer(0)),
            integer(0),
            integer(1),
        )
        steps = Steps(a)
        first, last = part_of(T.bind(lanes.vectors(a.P)), task, count)
        call("backward_propagate", own, zero, first, last, one, a.dz, zero, a.B)
        with when(a.D > 1), loop(zero, a.T) as t:
            now, following = steps.size(t), steps.size(t + 1)
            with when(now > following):
                row = T.bind(a.N + steps.start(t) + following)
                source = lanes.after(a.dz, row * a.dz_columns)
                some = T.bind(now - following)
                call("backward_propagate", own, one, first, last, one, source, following, some)

    module.add("backward_initial", ["block"], ["task", "tasks"], body, dtype="int64")
