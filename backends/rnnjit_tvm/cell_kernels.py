"""A cell's step and its gradient, on blocks of rows in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.cells import Cell
from rnnjit_tvm.pointwise import lower
from rnnjit_tvm.tensorir import Lanes, Module, integer, loop, when


def add_cell(module: Module, cell: Cell) -> None:
    """PrimFuncs `activate` and `activate_gradient`, which compute one cell.

    Args:
        module: what to add them to.
        cell: one whose `is_elman` holds.
    """
    _add_activate(module, cell)
    _add_activate_gradient(module, cell)


def _add_activate(module: Module, cell: Cell) -> None:
    """`activate(z, ld, rows, columns)`: h = f(z)."""
    lanes = module.lanes
    program = cell.step.without_inputs(cell.states)

    def step(z: Any) -> Any:
        return lower(lanes, program, [T.bind(z)])[0]

    def body(z: Any, ld: Any, rows: Any, columns: Any) -> None:
        def whole(index: Any) -> None:
            T.buffer_store(z, step(z[lanes.at(index)]), [lanes.at(index)])

        def part(index: Any, count: Any) -> None:
            lanes.store(z, index, step(lanes.load(z, index, count)), count)

        with loop(integer(0), rows) as r:
            _vectors(lanes, r * ld, columns, whole, part)

    module.add("activate", ["z"], ["ld", "rows", "columns"], body)


def _add_activate_gradient(module: Module, cell: Cell) -> None:
    """`activate_gradient(dz, h, grad, ld, ld_grad, rows, columns)`: the gradient of z, in place.

    Before, dz holds the gradient of the new state. `grad` is that of `out`, and h is `out`. `ld`
    is the distance of rows of dz and h, `ld_grad` that of rows of grad.
    """
    lanes = module.lanes

    def step(state: Any, h: Any, out: Any) -> Any:
        given = {"out": h, "grad_out": out, f"grad_new_{cell.states[0]}": state}
        inputs = [T.bind(given[name]) for name in cell.backward.inputs]
        gradient = lower(lanes, cell.backward, inputs)[0]
        return lanes.zeros() if gradient is None else gradient

    def body(dz: Any, h: Any, grad: Any, ld: Any, ld_grad: Any, rows: Any, columns: Any) -> None:
        with loop(integer(0), rows) as r:
            # Where a row of grad is, seen from the same row of dz.
            ahead = T.bind(r * (ld_grad - ld))

            def whole(index: Any) -> None:
                at = lanes.at(index)
                T.buffer_store(dz, step(dz[at], h[at], grad[lanes.at(index + ahead)]), [at])

            def part(index: Any, count: Any) -> None:
                state, here = lanes.load(dz, index, count), lanes.load(h, index, count)
                value = step(state, here, lanes.load(grad, index + ahead, count))
                lanes.store(dz, index, value, count)

            _vectors(lanes, r * ld, columns, whole, part)

    pointers, sizes = ["dz", "h", "grad"], ["ld", "ld_grad", "rows", "columns"]
    module.add("activate_gradient", pointers, sizes, body)


def _vectors(
    lanes: Lanes,
    start: Any,
    columns: Any,
    whole: Callable[[Any], None],
    part: Callable[[Any, Any], None],
) -> None:
    """Call `whole` for each full vector of a row, and `part` for what is left of it."""
    full = T.bind(T.truncdiv(columns, integer(lanes.count)))
    with loop(integer(0), full) as v:
        whole(T.bind(start + v * lanes.count))
    left = T.bind(columns - full * lanes.count)
    with when(left > 0):
        part(T.bind(start + full * lanes.count), left)
