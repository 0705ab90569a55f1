"""Steps, rows and threads' shares of the work: code that both passes' time loops share.

A slice of the batch is rows `low`, `low + stride`, ... below `high`. The sequences of a batch are
independent, and so slices need no barrier between steps.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.arguments import BackwardArguments, ForwardArguments
from rnnjit_tvm.tensorir import (
    Module,
    address,
    call,
    flushing,
    integer,
    least,
    loop,
    most,
    pointer,
)

Arguments = ForwardArguments | BackwardArguments


def forward_arguments(block: Any) -> ForwardArguments:
    """The fields of a forward argument block, as variables."""
    return ForwardArguments(*_fields(block, len(ForwardArguments._fields)))


def backward_arguments(block: Any) -> BackwardArguments:
    """The fields of a backward argument block, as variables."""
    return BackwardArguments(*_fields(block, len(BackwardArguments._fields)))


def _fields(block: Any, count: int) -> list[Any]:
    return [T.bind(block[integer(i)]) for i in range(count)]


def of_direction(a: Arguments, d: Any, name: str) -> Any:
    """The argument `<name>_<d>`."""
    return T.Select(d == 0, getattr(a, f"{name}_0"), getattr(a, f"{name}_1"))


class Steps:
    """The rows of each step.

    Args:
        a: the arguments of either pass.
    """

    def __init__(self, a: Arguments) -> None:
        self._a, self._starts = a, pointer(a.starts, "int64")

    def start(self, t: Any) -> Any:
        """The first row of step t, which may be T."""
        return T.bind(T.if_then_else(self._a.starts != 0, self._starts[t], t * self._a.B))

    def size(self, t: Any) -> Any:
        """The number of rows of step t; 0 for steps -1 and T."""
        last = T.bind(self._a.T - 1)
        clamped = least(most(t, integer(0)), last)
        size = T.bind(self.start(clamped + 1) - self.start(clamped))
        return T.bind(T.Select(T.And(t >= 0, t <= last), size, integer(0)))


class Slice(NamedTuple):
    """A slice of the batch.

    Attributes:
        d: the direction.
        low: its first row.
        high: the end of its rows.
        stride: the distance of its rows.
    """

    d: Any
    low: Any
    high: Any
    stride: Any

    def count(self, size: Any) -> Any:
        """How many of the slice's rows a step of some size has."""
        below = T.max(T.min(size, self.high) - self.low, integer(0))
        return T.bind(T.truncdiv(below + (self.stride - 1), self.stride))

    def row(self, index: Any) -> Any:
        """Row `index` of the slice, among those of a step."""
        return T.bind(self.low + index * self.stride)


def slice_of(a: Arguments, unit: Any) -> Slice:
    """Slice `unit` of those of all directions."""
    d = T.bind(T.truncdiv(unit, a.slices))
    index = T.bind(unit - d * a.slices)
    strided = T.bind(a.stride > 1)
    low = T.bind(T.Select(strided, index, index * a.slice_rows))
    high = T.bind(T.Select(strided, a.B, T.min(low + a.slice_rows, a.B)))
    return Slice(d, low, high, a.stride)


def partition(count: Any, thread: Any, threads: Any) -> Any:
    """A frame that runs what is emitted inside for each of a thread's units of work, by index.

    Unit `thread + index * threads` of `count` is the thread's.
    """
    return loop(integer(0), T.truncdiv(T.max(count - thread, 0) + threads - 1, threads))


def add_entries(
    module: Module, name: str, phases: list[str], suffix: str = "", *, flush: bool = False
) -> None:
    """PrimFuncs whose one parameter is an argument block.

    `<name><suffix>_alone` runs all phases; `<phase><suffix>_team` is called by every thread of a
    team, with a barrier before the next phase. A phase is a PrimFunc `(block, thread, threads)`.

    Args:
        module: has the phases, and gets the entries.
        name: of the kernel.
        phases: their names.
        suffix: tells these entries from others of the same kernel.
        flush: whether the entries flush subnormal numbers, see `tensorir.flushing`.
    """
    mode = flushing if flush else nullcontext

    def alone(block: Any) -> None:
        with mode():
            for phase in phases:
                call(phase, address(block, integer(0)), integer(0), integer(1))

    module.add(f"{name}{suffix}_alone", ["block"], [], alone, dtype="int64")
    for phase in phases:

        def team(block: Any, phase: str = phase) -> None:
            thread, threads = (
                T.cast(T.call_extern("int32", symbol), "int64")
                for symbol in ("omp_get_thread_num", "omp_get_num_threads")
            )
            with mode():
                call(phase, address(block, integer(0)), T.bind(thread), T.bind(threads))

        module.add(f"{phase}{suffix}_team", ["block"], [], team, dtype="int64")


def add_copy(module: Module) -> None:
    """PrimFunc `copy(source, to, ld_source, ld_to, rows, columns)`."""

    def body(source: Any, to: Any, ld_source: Any, ld_to: Any, rows: Any, columns: Any) -> None:
        with loop(integer(0), rows) as r, loop(integer(0), columns) as c:
            T.buffer_store(to, source[r * ld_source + c], [r * ld_to + c])

    module.add("copy", ["source", "to"], ["ld_source", "ld_to", "rows", "columns"], body)
