"""Steps, rows and arguments: code that both passes share.

A slice of the batch is rows `low`, `low + stride`, ... below `high`. The sequences of a batch are
independent, and so slices need no barrier between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from tvm.tirx.script.builder import ir as T

from rnnjit.ir import CellSpec
from rnnjit_tvm.arguments import (
    Arguments,
    BackwardArguments,
    ForwardArguments,
    parameter_argument,
    state_argument,
)
from rnnjit_tvm.tensorir import (
    Lanes,
    Module,
    address,
    call,
    flushing,
    integer,
    least,
    local,
    loop,
    most,
    pointer,
)


def forward_arguments(block: Any) -> ForwardArguments:
    """The fields of a forward argument block, as variables."""
    return ForwardArguments(*_fields(block, len(ForwardArguments._fields)))


def backward_arguments(block: Any) -> BackwardArguments:
    """The fields of a backward argument block, as variables."""
    return BackwardArguments(*_fields(block, len(BackwardArguments._fields)))


def _fields(block: Any, count: int) -> list[Any]:
    return [T.bind(block[integer(i)]) for i in range(count)]


def of_state(block: Any, kind: type[Arguments], state: int, which: int) -> Any:
    """An address of a state but the first, see `arguments.state_argument`."""
    return T.bind(block[integer(state_argument(kind, state, which))])


def of_parameter(
    block: Any, kind: type[Arguments], cell: CellSpec, d: Any, parameter: int, which: int
) -> Any:
    """An address of a parameter of direction d, see `arguments.parameter_argument`."""
    first, second = (
        block[integer(parameter_argument(kind, cell, parameter, direction, which))]
        for direction in range(2)
    )
    return T.bind(T.Select(d == 0, first, second))


def columns_of_w_hh(a: Arguments, cell: CellSpec) -> Any:
    """The columns of W_hh: none if the cell has no recurrent product."""
    return a.P if cell.has_product else integer(0)


def columns_of_x(a: Arguments, cell: CellSpec) -> Any:
    """The columns of x: the input, then the row inputs of each direction."""
    if not cell.row_inputs:
        return a.I
    return T.bind(a.I + a.D * a.H * len(cell.row_inputs))


def of_direction(a: Arguments, d: Any, name: str) -> Any:
    """The argument `<name>_<d>`."""
    return T.bind(T.Select(d == 0, getattr(a, f"{name}_0"), getattr(a, f"{name}_1")))


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
        low: its first row.
        high: the end of its rows.
        stride: the distance of its rows.
    """

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


def slice_of(a: Arguments, unit: Any) -> tuple[Any, Slice]:
    """The direction of slice `unit` of those of all directions, and the slice."""
    d = T.bind(T.truncdiv(unit, a.slices))
    index = T.bind(unit - d * a.slices)
    strided = T.bind(a.stride > 1)
    low = T.bind(T.Select(strided, index, index * a.slice_rows))
    high = T.bind(T.Select(strided, a.B, T.min(low + a.slice_rows, a.B)))
    return d, Slice(low, high, a.stride)


def part_of(count: Any, part: Any, parts: Any) -> tuple[Any, Any]:
    """The bounds of one of `parts` nearly equal parts of `count` units."""
    low, high = (T.bind(T.truncdiv(count * each, parts)) for each in (part, part + 1))
    return low, high


def partition(count: Any, thread: Any, threads: Any) -> Any:
    """A frame that runs what is emitted inside for each of a thread's units of work, by index.

    Unit `thread + index * threads` of `count` is the thread's.
    """
    return loop(integer(0), T.truncdiv(T.max(count - thread, 0) + threads - 1, threads))


@contextmanager
def blocks(start: Any, stop: Any, size: int | Any) -> Iterator[tuple[Any, Any]]:
    """Run what is emitted inside for each block of `size` numbers: its first, and its length."""
    number = T.truncdiv(T.max(stop - start, 0) + (size - 1), integer(0) + size)
    with loop(integer(0), number) as index:
        low = T.bind(start + index * size)
        yield low, least(stop - low, integer(0) + size)


def each_vector(
    lanes: Lanes,
    rows: Any,
    span: tuple[Any, Any],
    columns: Any,
    body: Callable[[Any, Any, Masked], None],
) -> None:
    """Call `body(row, vector, lanes)` for each row and vector of a span of those of `columns`."""
    first, last = span
    whole = T.bind(T.truncdiv(columns, integer(lanes.count)))
    with loop(integer(0), rows) as r:
        with loop(first, T.min(last, whole)) as v:
            body(r, v, Masked(lanes))
        with T.If(T.And(whole >= first, whole < last)), T.Then():
            body(r, whole, Masked(lanes, T.bind(columns - whole * lanes.count)))


class Masked(NamedTuple):
    """Loads and stores of a whole vector, or of its first lanes.

    Attributes:
        lanes: the vectors.
        count: how many lanes; None for all.
    """

    lanes: Lanes
    count: Any = None

    def load(self, buffer: Any, index: Any) -> Any:
        """The lanes from memory, as a variable; zeros in the others."""
        if self.count is None:
            return T.bind(buffer[self.lanes.at(index)])
        return T.bind(self.lanes.load(buffer, index, self.count))

    def store(self, buffer: Any, index: Any, value: Any) -> None:
        """Write the lanes to memory."""
        if self.count is None:
            T.buffer_store(buffer, value, [self.lanes.at(index)])
        else:
            self.lanes.store(buffer, index, value, self.count)


class Variable:
    """An int64 that changes.

    Args:
        value: its first value.
    """

    def __init__(self, value: Any) -> None:
        self._memory = local(1, "int64")
        self.set(value)

    @property
    def address(self) -> Any:
        """A pointer to it."""
        return address(self._memory, integer(0))

    def get(self) -> Any:
        """Its value, to be used before it changes."""
        return self._memory[integer(0)]

    def now(self) -> Any:
        """Its value now, as a variable that does not change."""
        return T.bind(self.get())

    def set(self, value: Any) -> None:
        """Change it."""
        T.buffer_store(self._memory, value, [integer(0)])


def affine(
    lanes: Lanes,
    init: tuple[Any, Any],
    x: tuple[Any, Any, Any],
    h: tuple[Any, Any, Any],
    weights: tuple[Any, Any],
    out: tuple[Any, Any],
    shape: tuple[Any, tuple[Any, Any], Any],
) -> None:
    """Emit `out = init + x W_x + h W_h`, see `tiles.add_tiles`.

    Args:
        lanes: the vectors.
        init: address and distance of rows, which is 0 if one row serves for all.
        x: address, distance of rows and k, which may be 0.
        h: as well.
        weights: address of the panels, and their distance.
        out: address and distance of rows.
        shape: rows, the first and the last of the panels to compute, and columns of all panels.
    """
    rows, (first, last), columns = shape
    at = T.bind(first * lanes.count)
    some = T.bind(T.max(T.min(columns, last * lanes.count) - at, integer(0)))
    pointers = (
        lanes.element(lanes.after(init[0], at)),
        lanes.element(x[0]),
        lanes.element(h[0]),
        lanes.element(lanes.after(weights[0], first * weights[1])),
        lanes.element(lanes.after(out[0], at)),
    )
    sizes = (init[1], x[1], integer(1), x[2], h[1], h[2], weights[1], out[1], rows, some)
    call("block", *pointers, *sizes)


def add_entries(module: Module, name: str, suffix: str = "", *, flush: bool = False) -> None:
    """PrimFuncs whose one parameter is an argument block, for a kernel `(block, thread, threads)`.

    `<name><suffix>_alone` runs it on one thread; `<name><suffix>_team` is called by every thread of
    a team.

    Args:
        module: has the kernel, and gets the entries.
        name: of the kernel.
        suffix: tells these entries from others of the same kernel.
        flush: whether the entries flush subnormal numbers, see `tensorir.flushing`.
    """
    mode = flushing if flush else nullcontext

    def alone(block: Any) -> None:
        with mode():
            call(name, address(block, integer(0)), integer(0), integer(1))

    def team(block: Any) -> None:
        thread, threads = (
            T.bind(T.cast(T.call_extern("int32", symbol), "int64"))
            for symbol in ("omp_get_thread_num", "omp_get_num_threads")
        )
        with mode():
            call(name, address(block, integer(0)), thread, threads)

    module.add(f"{name}{suffix}_alone", ["block"], [], alone, dtype="int64")
    module.add(f"{name}{suffix}_team", ["block"], [], team, dtype="int64")


def add_copy(module: Module) -> None:
    """PrimFunc `copy_rows(to, ld_to, source, ld_source, rows, first, last, columns)`.

    It copies vectors `first` to `last` of rows of `columns` columns from one address to another;
    zeros if `source` is 0. Rows may be a negative distance apart.
    """
    lanes = module.lanes

    def body(*sizes: Any) -> None:
        to, ld_to, source, ld_source, rows, first, last, columns = sizes
        target, given = lanes.memory(to), lanes.memory(source)

        def copy(r: Any, v: Any, masked: Masked) -> None:
            at = T.bind(v * lanes.count)
            masked.store(target, r * ld_to + at, masked.load(given, r * ld_source + at))

        def clear(r: Any, v: Any, masked: Masked) -> None:
            masked.store(target, r * ld_to + v * lanes.count, lanes.zeros())

        with T.If(source != 0):
            with T.Then():
                each_vector(lanes, rows, (first, last), columns, copy)
            with T.Else():
                each_vector(lanes, rows, (first, last), columns, clear)

    names = ["to", "ld_to", "source", "ld_source", "rows", "first", "last", "columns"]
    module.add("copy_rows", [], names, body)
