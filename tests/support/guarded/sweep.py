"""Runs a CPU backend on guarded memory (see `memory`) and holds its results against eager.

    python -m guarded.sweep BACKEND MORE

An access out of bounds kills it, and so do wrong values. Before each call it writes a line that
says what is called, and at the end one that says what was covered.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib import import_module
from itertools import cycle
from typing import Any

import torch
from program_steps import Steps

from guarded.calls import WAYS, Named, expectations, given, is_at_kink, pass_of, spec_of
from guarded.cases import COSTS, KINDS, Case, Kind, cases, programs
from guarded.kernels import Watch, forget_recipes, guarded_backend
from guarded.memory import Guards, allocating
from rnnjit import Problem, RNNSpec
from rnnjit.codegen import plan, row_slices
from rnnjit.codegen.host import host_isa
from rnnjit.dispatch.choice import verdict
from rnnjit.testing.tolerances import Expected, InexactError, judge

#: As in the conformance kit: how many calls nearby show eager's error before a backend is failed,
#: and from how many times of what is allowed on none of them could save it.
_DRAWS_IN_DOUBT = 41
_DOUBT = 20


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def check(case: Case, backend: Any, guards: Guards) -> None:
    """Run a case with all blocks before a guard page, and behind one."""
    values = given(case)
    expected = expectations(case, values)
    for guards.at_end in (True, False):
        say(f"blocks {'before' if guards.at_end else 'behind'} a guard page: {case}")
        copies = values.guarded(guards)
        torch.set_num_threads(case.threads)
        with allocating(guards):
            found = WAYS[case.how](backend, case, copies, guards)
        torch.set_num_threads(1)
        guards.check()
        assert found.keys() == expected.keys(), f"got {[*found]}, expected {[*expected]}"
        if not case.judged:
            continue
        try:
            _judge(found, expected)
        except InexactError as error:
            if error.excess > _DOUBT:
                if not is_at_kink(case, values):
                    raise
                say("the values are at a kink of the cell: others are drawn")
                check(replace(case, seed=case.seed + 1), backend, guards)
                return
            expected = expectations(case, values, _DRAWS_IN_DOUBT)
            _judge(found, expected)
        for value, copy in zip(values.tensors(), copies.tensors(), strict=True):
            same = torch.equal(value.view(torch.uint8), copy.view(torch.uint8))
            assert same, "an input was written to"


def _judge(found: Named, expected: dict[str, Expected]) -> None:
    for name, value in found.items():
        judge(name, pass_of(name), value, expected[name])


def traits(a: Any, threads: int) -> set[str]:
    """How a kernel was called, given its arguments."""
    kernel = "backward" if hasattr(a, "grad_x") else "forward"
    found = {
        "several threads": threads > 1,
        "slices": a.slices > 1,
        "strides": a.stride > 1,
        "hoist": getattr(a, "hoist", 0) > 0,
        "direct": getattr(a, "direct", 0) > 0,
        "parts": getattr(a, "parts", 1) > 1,
        "tail": getattr(a, "tail", 0) > 0,
        "windows": hasattr(a, "dz_buffer") and a.window < a.N,
    }
    return {f"{kernel} {name}" for name, here in found.items() if here}


DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16


def tiles_of(backend: str, dtype: torch.dtype) -> list[tuple[int, int, str]]:
    """The register tiles, see `cases`."""
    shapes = import_module(f"rnnjit_{backend}.tile_shapes")
    if backend == "numba":
        isa = shapes.as_tiles_see(host_isa(), dtype)
        forced = [(*shape, str(shape)) for shape in shapes.candidates(isa)]
        forced += [(*shape, "") for shape in shapes.small_shapes(isa)]
    else:
        forced = [(*shape, "") for shape in shapes.tile_shapes(host_isa())]
    return [
        (rows, width, tiling) for rows, widest, tiling in forced for width in range(1, widest + 1)
    ]


def tilings_of(backend: str, dtype: torch.dtype) -> list[str]:
    """Values of RNNJIT_TILES by which every tile and every block of k is used."""
    if backend != "numba":
        return [""]
    shapes = import_module(f"rnnjit_{backend}.tile_shapes")
    isa = shapes.as_tiles_see(host_isa(), dtype)
    outer = cycle(shapes.outer_candidates(isa))
    return [
        f"{shapes.Tiling(shape, k)},{next(outer)}"
        for shape in shapes.candidates(isa)
        for k in shapes.K_BLOCKS
    ]


def reasons_against(backend: Any, kind: Kind) -> tuple[str, ...]:
    """Why a backend declines layers of a kind."""
    spec = RNNSpec(3, 4, cell=kind.cell, proj_size=2 if kind.projected else 0)
    return verdict(backend, spec, Problem(torch.float32, "cpu", 3, 2, 6, False, True)).reasons


def main(name: str, more: int) -> None:
    torch.set_num_threads(1)
    backend = import_module(f"rnnjit_{name}").BACKEND
    run = import_module(f"rnnjit_{name}.run")
    covered: set[str] = set()
    guards = Guards()
    watch = Watch(guards, lambda a, threads: covered.update(traits(a, threads)))
    with guarded_backend(name, watch):
        tiles = {dtype: tiles_of(name, dtype) for dtype in DTYPES}
        lanes = {dtype: host_isa().lanes(max(dtype.itemsize, 4)) for dtype in DTYPES}
        tilings = {dtype: cycle(tilings_of(name, dtype)) for dtype in DTYPES}
        kinds = [kind for kind in KINDS if not reasons_against(backend, kind)]
        for case in cases(name, backend.dtypes, kinds, tiles, lanes, more):
            os.environ["RNNJIT_TILES"] = case.tiling or next(tilings[case.dtype])
            for cost, value in zip(COSTS, case.costs, strict=True):
                for module in (plan, row_slices):
                    if hasattr(module, cost):
                        setattr(module, cost, value)
            forget_recipes(run)
            check(case, backend, guards)
    kinds = [kind for kind in kinds if not backend.why_not_build(kind.cell)]
    for calls in programs(kinds, more) if "native" in backend.targets() else ():
        spec, dtype = spec_of(calls[0]), calls[0].dtype
        built = backend.build(spec, dtype, "native", "stack")
        ways = {"program": backend.load(built, spec, dtype, "stack")}
        if not spec.bidirectional:
            ways["steps"] = Steps(built.files["stack.o"], "stack", len(spec.cell.states))
        for case in calls:
            check(case, ways[case.how], guards)
    say(f"covered: {', '.join(sorted(covered))}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
