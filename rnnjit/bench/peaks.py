"""Measures the machine's peaks: multiply-add rate, and read bandwidth of each level of memory.

It runs two loops in LLVM IR on vectors of the machine's width: one only multiplies and adds in
registers, the other reads a buffer repeatedly.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Barrier
from time import perf_counter
from typing import Any

import llvmlite.binding as llvm
import torch

from rnnjit.codegen import Isa
from rnnjit.codegen.host import host_isa

_ELEMENTS = {32: "float", 64: "double"}
#: Each chain is a vector that is loaded from `%data` and stored to `%out`, so that the compiler
#: cannot remove it.
_LOOP = """
define void @{name}(i64 %count, ptr %data, i64 %mask, ptr %out) {{
entry:
  {before}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  {chains}
  %far = mul i64 %i, {stride}
  %place = and i64 %far, %mask
  %from = getelementptr i8, ptr %data, i64 %place
  {step}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %end
end:
  {after}
  ret void
}}
"""
_BEFORE = """%p{k} = getelementptr {vector}, ptr %data, i64 {k}
  %start{k} = load {vector}, ptr %p{k}, align {align}"""
_CHAIN = "%a{k} = phi {vector} [ %start{k}, %entry ], [ %b{k}, %loop ]"
# x / 2 + 1 / 2, which stays at 1.
_FMA = """%b{k} = call {vector} @llvm.fmuladd.{suffix}(
    {vector} %a{k}, {vector} {half}, {vector} {half})"""
_READ = """%q{k} = getelementptr {vector}, ptr %from, i64 {k}
  %r{k} = load {vector}, ptr %q{k}, align {align}
  %b{k} = fadd {vector} %a{k}, %r{k}"""
_AFTER = """%o{k} = getelementptr {vector}, ptr %out, i64 {k}
  store {vector} %b{k}, ptr %o{k}, align {align}"""


def fma_peak(bits: int, threads: int, *, quick: bool = False) -> float:
    """Measure the floating-point operations per second of multiply-adds (two each) in registers.

    Args:
        bits: width of an element, 32 or 64.
        threads: number of threads that run at the same time.
        quick: whether to take fewer and shorter samples.
    """
    isa = host_isa()
    chains = isa.registers * 3 // 4
    lanes = isa.lanes(bits // 8)
    seconds = _fastest("fma", bits, [_buffer(4096) for _ in range(threads)], quick)
    return threads * chains * lanes * 2 / seconds


def bandwidth(size: int, threads: int, *, quick: bool = False) -> float:
    """Measure the bytes per second that threads read, each from its own buffer.

    Args:
        size: bytes of a buffer, a power of two.
        threads: number of threads that run at the same time.
        quick: whether to take fewer and shorter samples.
    """
    isa = host_isa()
    seconds = _fastest("read", 32, [_buffer(size) for _ in range(threads)], quick)
    return threads * isa.registers // 2 * isa.vector_bytes / seconds


def _fastest(name: str, bits: int, data: list[torch.Tensor], quick: bool) -> float:
    """The least seconds of an iteration of a loop, with one thread for each buffer."""
    loop, mask = _loops(host_isa(), bits)[name], data[0].nbytes - 1
    room = [_buffer(4096) for _ in data]

    def run(count: int) -> float:
        pairs = zip(data, room, strict=True)
        return _together([partial(loop, count, x.data_ptr(), mask, o.data_ptr()) for x, o in pairs])

    count, wanted = 1024, 2e-3 if quick else 2e-2
    while (lasted := run(count)) < wanted:
        count = int(count * min(8.0, 1.5 * wanted / lasted))
    return min(run(count) for _ in range(3 if quick else 15)) / count


def _together(calls: list[Callable[[], None]]) -> float:
    """Seconds from the first start to the last end; ctypes releases the GIL during calls."""
    barrier = Barrier(len(calls))
    # Threads are pinned, since the system may start short-lived threads on the same processor.
    pin = getattr(os, "sched_setaffinity", None)
    processors = sorted(os.sched_getaffinity(0)) if pin else []

    def run(call: Callable[[], None]) -> tuple[float, float]:
        turn = barrier.wait()
        if pin:
            pin(0, {processors[turn % len(processors)]})
            barrier.wait()
        start = perf_counter()
        call()
        return start, perf_counter()

    with ThreadPoolExecutor(len(calls)) as pool:
        starts, ends = zip(*pool.map(run, calls), strict=True)
    return float(max(ends) - min(starts))


@cache
def _loops(isa: Isa, bits: int) -> dict[str, Any]:
    """Compile the two loops: functions of (iterations, data, mask of byte offsets, out)."""
    loops = {"fma": (_FMA, isa.registers * 3 // 4), "read": (_READ, isa.registers // 2)}
    text = "\n".join(_text(isa, bits, name, *loop) for name, loop in loops.items())
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(isa.triple)
    machine = target.create_target_machine(cpu=isa.cpu, features=",".join(isa.features), opt=3)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    arguments = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    kind = ctypes.CFUNCTYPE(None, *arguments)
    found: dict[str, Any] = {name: kind(engine.get_function_address(name)) for name in loops}
    return {**found, "engine": engine}


def _text(isa: Isa, bits: int, name: str, step: str, chains: int) -> str:
    """One loop in LLVM IR; each iteration advances every chain once."""
    lanes, element = isa.lanes(bits // 8), _ELEMENTS[bits]
    words = {
        "vector": f"<{lanes} x {element}>",
        "suffix": f"v{lanes}f{bits}",
        "half": f"<{', '.join([f'{element} 0.5'] * lanes)}>",
        "align": isa.vector_bytes,
    }

    def each(pattern: str) -> str:
        return "\n  ".join(pattern.format(k=k, **words) for k in range(chains))

    parts = {"before": _BEFORE, "chains": _CHAIN, "step": step, "after": _AFTER}
    text = {part: each(pattern) for part, pattern in parts.items()}
    declared = "declare {vector} @llvm.fmuladd.{suffix}({vector}, {vector}, {vector})"
    head = declared.format(**words) if step is _FMA else ""
    return head + _LOOP.format(name=name, stride=chains * isa.vector_bytes, **text)


def _buffer(size: int) -> torch.Tensor:
    """A buffer of ones: pages that were never written all map to one page of zeros."""
    return torch.ones(size // 4, dtype=torch.float32, device="cpu")
