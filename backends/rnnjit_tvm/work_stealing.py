"""Work stealing: the threads of a team take over tasks that others have not begun.

The threads of a team go through the same phases in the same order. Each phase has a task for every
thread, and begins when all tasks of the one before are done. A thread does its own task first, and
then steals those that others have not begun: the operating system may have given a thread's core to
another program for milliseconds, a thousand times as long as a step of a recurrence takes. So the
team waits for a thread only while that thread is in the middle of a task. (Blumofe and Leiserson,
"Scheduling multithreaded computations by work stealing", J. ACM 46(5), 1999, steal to balance the
load; here threads steal because others may not be running.)

A task's work depends on its number alone, and so results do not depend on which thread does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.kernel import LINE
from rnnjit_tvm.tensorir import Module, address, call, integer, local, loop, pointer, when

#: Polls of the others' progress before a thread steals a task, about a microsecond: by then threads
#: that run have begun, and the data of their tasks are in the caches of their cores.
_SPINS_BEFORE_STEALING = 2000
#: Polls before a waiting thread yields its core: the thread that it waits for may need it.
_SPINS_BEFORE_YIELDING = 2000

#: TensorIR has no atomic operations on a CPU. TVM links these functions into what calls them, and
#: LLVM inlines them.
_ATOMICS = """
define i64 @load_acquire(ptr %address) {
  %value = load atomic i64, ptr %address acquire, align 8
  ret i64 %value
}

define i64 @increment_if_equal(ptr %address, i64 %expected) {
  %next = add i64 %expected, 1
  %pair = cmpxchg ptr %address, i64 %expected, i64 %next acq_rel acquire
  %same = extractvalue { i64, i1 } %pair, 1
  %flag = zext i1 %same to i64
  ret i64 %flag
}

define void @atomic_increment(ptr %address) {
  %before = atomicrmw add ptr %address, i64 1 acq_rel
  ret void
}
"""


@contextmanager
def tasks(area: Any, own: Any, count: Any, phase: Any, last: Any) -> Iterator[Any]:
    """Run what is emitted inside for each task of a phase that this thread claims, by its number.

    * `area` is the address of the memory by which threads synchronise (see
      `ForwardArguments.sync`): a cache line with the number of tasks done so far, and then a line
      for each task: in how many phases it was claimed, and whether its thread stole when it last
      tried, after which it steals at once.
    * `own` is this thread's own task, of `count`. No two threads have the same.
    * `phase` counts the phases from 0.
    * `last` is 1 in the last phase, at whose end no thread waits.
    """
    claimed = local(1, "int64")

    def claim(finished: Any) -> None:
        found = address(claimed, integer(0))
        call("next_task", found, area, own, count, phase, finished, last)

    claim(integer(-1))
    with T.While(claimed[integer(0)] >= 0):
        task = T.bind(claimed[integer(0)])
        yield task
        claim(task)


def add_next_task(module: Module) -> None:
    """PrimFunc `next_task(claimed, area, own, tasks, phase, finished, last)`, see `tasks`.

    It writes to `claimed` the number of a task that this thread has claimed and must do now, or -1
    if there is none and the phase is over, or, in the last phase, all its tasks are claimed.
    `finished` is the task that the thread has just done, or -1 in its first call of the phase.
    """

    def body(claimed: Any, *sizes: Any) -> None:
        area, own, tasks, phase, finished, last = sizes
        first = integer(0)
        with T.attr(integer(0), "pragma_import_llvm", _ATOMICS), T.If(tasks == 1):
            with T.Then():
                T.buffer_store(claimed, T.Select(finished < 0, integer(0), integer(-1)), [first])
            with T.Else():
                T.buffer_store(claimed, integer(-1), [first])
                with when(T.And(finished >= 0, last == 0)):
                    T.evaluate(T.call_extern("void", "atomic_increment", _at(area)))
                line = T.bind(area + LINE * (1 + own))
                _claim(claimed, line, phase, own)
                with when(claimed[first] < 0):
                    _steal(claimed, area, line, (own, tasks, phase, last))

    names = ["area", "own", "tasks", "phase", "finished", "last"]
    module.add("next_task", ["claimed"], names, body, dtype="int64")


def _steal(claimed: Any, area: Any, line: Any, sizes: tuple[Any, ...]) -> None:
    """Claim another thread's task, or wait until the phase is over."""
    own, tasks, phase, last = sizes
    first, done = integer(0), T.bind((phase + 1) * tasks)
    stole = pointer(line + 8, "int64")
    patience = T.bind(T.Select(stole[first] == 0, integer(_SPINS_BEFORE_STEALING), first))
    spins = local(1, "int64")
    T.buffer_store(spins, T.Select(last == 0, patience, first), [first])
    with T.While(T.And(spins[first] > 0, _load(area) < done)):
        T.buffer_store(spins, spins[first] - 1, [first])
    with when(_load(area) < done):
        with loop(integer(1), tasks) as i, when(claimed[first] < 0):
            other = T.bind(T.Select(own + i < tasks, own + i, own + i - tasks))
            theirs = T.bind(area + LINE * (1 + other))
            T.buffer_store(spins, T.Select(last != 0, patience, first), [first])
            with T.While(T.And(spins[first] > 0, _load(theirs) == phase)):
                T.buffer_store(spins, spins[first] - 1, [first])
            _claim(claimed, theirs, phase, other)
        T.buffer_store(stole, T.Select(claimed[first] < 0, first, integer(1)), [first])
        with when(T.And(claimed[first] < 0, last == 0)):
            T.buffer_store(spins, first, [first])
            with T.While(_load(area) < done):
                T.buffer_store(spins, spins[first] + 1, [first])
                with when(spins[first] == _SPINS_BEFORE_YIELDING):
                    T.buffer_store(spins, first, [first])
                    T.evaluate(T.call_extern("int32", "sched_yield"))


def _claim(claimed: Any, line: Any, phase: Any, task: Any) -> None:
    """Claim a task by its line, if no thread has."""
    with when(_load(line) == phase):
        got = T.bind(T.call_extern("int64", "increment_if_equal", _at(line), phase))
        with when(got != 0):
            T.buffer_store(claimed, task, [integer(0)])


def _load(place: Any) -> Any:
    """What is at an address now; all that was written before it was written there is visible."""
    return T.call_extern("int64", "load_acquire", _at(place))


def _at(place: Any) -> Any:
    return T.reinterpret("handle", place)
