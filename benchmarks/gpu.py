"""A backend on a GPU, in one command: the kit, sanitizers, step times, and times against eager.

    python benchmarks/gpu.py [--cell rnn lstm gru] [--json FILE] [--quick]

With --quick and all cells it is to take three minutes. On a GPU, eager's layers are cuDNN; they are
timed with TF32 off and on, and through torch.compile. All run the same call in one process and take
samples in turns, each the device time between two events; figures are medians. The time of one more
step of a single sequence is given for every family of kernels, and how cells that users may write
differ from the reference there, values and gradients. Calls with resets are compared, and timed,
with the same calls cut into packed segments. For the grid-wide ones at H=64,
which compute next to nothing, it is that of the grid barrier. If values or gradients differ from
eager's by more than another order of summation explains, the row says so and gives no times.
`--device cpu --backend numba` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from measures import resets, sanitizer, user_cells
from measures.device import LAYERS, PASSES, Call, medians, tf32
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rnnjit
from rnnjit import Backend, testing
from rnnjit.dispatch.choice import why_not_cell
from rnnjit.ir import GRU, LSTM, RNN_TANH, CellSpec
from rnnjit.tools.environment import environment
from rnnjit_cuda import CudaBackend
from rnnjit_cuda.kernels import FAMILIES
from rnnjit_cuda.launch import driver_launcher
from rnnjit_cuda.plan import candidates, why_not

HIDDEN = (64, 128, 256, 512, 1024, 2048)
#: T and B; a long sequence repeats what a short one shows, and takes ten times as long.
EXTENTS = ((100, 1), (100, 8), (100, 32), (100, 128), (1000, 1), (1000, 32))
#: Where torch.compile is tried too: it takes a second for each shape.
COMPILED = ((100, 8), (100, 32))
QUICK = ((100, 1), (100, 32)), (64, 512)
#: What layers of users' cells are computed in with --quick; a kernel compiles for seconds.
QUICK_DTYPES = ("float32",)
#: Seconds for each sanitizer with --quick.
_QUICK_PATIENCE = 100
#: The cells of torch's layers, as the planner knows them.
_CELLS = {"rnn": RNN_TANH, "lstm": LSTM, "gru": GRU}
#: The largest allowed difference of results, and of gradients relative to the largest one: the
#: order of summation differs, over many steps.
CLOSE = {"float32": 1e-3, "float64": 1e-10, "bfloat16": 5e-2}
#: Hidden sizes of the layers of users' cells: for registers, shared memory and the whole grid.
USER_HIDDEN = (48, 72, 200)
#: T, B and H of calls with resets: kernels in shared memory, and over the whole grid.
RESETS = ((128, 32, 128), (128, 32, 512))
#: Steps whose times give that of one more: so many that the device takes longer than the host.
LONG = (2000, 6000)


def measure(
    shape: tuple[int, int, int], dtype: str, packed: bool, cell: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Times and ratios of one shape."""
    call = Call(*shape, dtype, packed, options.device, cell)
    ours = rnnjit.compile(call.rnn, backend=options.backend)
    found: dict[str, Any] = {"cell": cell, "shape": shape, "dtype": dtype, "packed": packed}
    with torch.no_grad(), tf32(False):
        try:
            found["difference"] = float((call.forward(call.rnn) - call.forward(ours)).abs().max())
        except rnnjit.UnsupportedError as error:
            return found | {"difference": float("nan"), "declined": str(error)}
    with tf32(False):
        found["gradients"] = call.apart(call.rnn, ours)
    if not max(found["difference"], found["gradients"]) <= CLOSE[dtype]:
        return found
    for passes in PASSES:
        eager, compiled = (call.run(module, passes) for module in (call.rnn, ours))

        def loose(eager: Callable[[], None] = eager) -> None:
            with tf32(True):
                eager()

        def strict(eager: Callable[[], None] = eager) -> None:
            with tf32(False):
                eager()

        candidates = {"eager": strict, "compiled": compiled}
        if dtype == "float32":
            candidates["eager_tf32"] = loose
            if not packed and shape[:2] in COMPILED:
                candidates |= _torch_compiled(call, passes)
        times = medians(candidates, options.rounds, options.device)
        found[passes] = times | {"ratio": times["eager"] / times["compiled"]}
    return found


def _torch_compiled(call: Call, passes: str) -> dict[str, Callable[[], None]]:
    """The module through torch.compile, which breaks the graph at nn.RNN; nothing if it fails."""
    torch.compiler.reset()
    run = call.run(torch.compile(call.rnn), passes)
    try:
        run()
    except Exception as error:  # noqa: BLE001 - it is a peer: where it fails there is no time
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}")
        return {}
    return {"torch_compile": run}


def kit(family: str | None, options: argparse.Namespace) -> str:
    """The conformance kit's verdict on the backend, or on one family of its kernels."""
    backend = options.backend if family is None else backends_by_family(options)[family]
    report = testing.run(backend, quick=options.quick)
    counts = f"{report.passed} passed, {report.failed} failed, {report.declined} declined"
    failures = [f"FAILED {failure.id}: {failure.message}" for failure in report.failures]
    return "\n".join([counts, *report.missing, *failures])


def check(options: argparse.Namespace) -> dict[str, str]:
    """The kit's and the sanitizers' verdicts, each from a process of its own."""
    families = [None, *FAMILIES] if options.backend == CudaBackend.name else [None]
    jobs: dict[str, Any] = {}
    with ProcessPoolExecutor(len(families) + len(sanitizer.TOOLS), get_context("spawn")) as pool:
        for family in families:
            jobs[f"kit, {family or 'as it is'}"] = pool.submit(kit, family, options)
        for tool in sanitizer.TOOLS:
            patience = [_QUICK_PATIENCE] if options.quick else []
            jobs[tool] = pool.submit(sanitizer.verdict, tool, options.backend, *patience)
        return {what: job.result() for what, job in jobs.items()}


def backends_by_family(options: argparse.Namespace) -> dict[str, str | Backend]:
    """The backends whose steps are timed: each family of CUDA kernels, or the backend as it is."""
    if options.backend != CudaBackend.name:
        return {options.backend: options.backend}
    found: dict[str, str | Backend] = {}
    for family in FAMILIES:
        backend = CudaBackend()
        backend.families = (family,)  # type: ignore[misc]  # of this object alone
        found[family] = backend
    return found


def has_room(family: str, H: int, cell: str) -> bool:
    """Whether steps of a family are timed: the device must have room for a layer of float32."""
    if family not in FAMILIES:
        return True
    if family == "step":
        return HIDDEN[0] == H  # The host's time is the same for all sizes, and long.
    layer, device = rnnjit.RNNSpec(H, H, cell=_CELLS[cell]).layer(0), driver_launcher(0).properties
    return any(True for _ in candidates(layer, 1, "float32", "forward", device, (family,)))


def user_cells_by_family(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How layers of cells that users may write differ from the reference, by family of kernels.

    Each family compiles its kernels in a process of its own.
    """
    families = list(backends_by_family(options))
    with ProcessPoolExecutor(len(families), get_context("spawn")) as pool:
        jobs = [pool.submit(user_cells_of, family, options) for family in families]
        return [row for job in jobs for row in job.result()]


def user_cells_of(family: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one family; cells that it has no kernels for are left out."""
    given = backends_by_family(options)[family]
    backend = rnnjit.backends()[given] if isinstance(given, str) else given
    dtypes, found = QUICK_DTYPES if options.quick else tuple(CLOSE), []
    for cell, dtype, H, packed in itertools.product(
        user_cells.CELLS.values(), dtypes, USER_HIDDEN, (False, True)
    ):
        kind = getattr(torch, dtype)
        taken = backend.dtypes is None or kind in backend.dtypes
        if not taken or why_not_cell(backend, cell) or not _runs(family, cell, H, dtype):
            continue
        difference = user_cells.difference(backend, cell, H, kind, options.device, packed=packed)
        row = {"family": family, "cell": cell.name, "dtype": dtype, "H": H, "packed": packed}
        found.append(row | {"difference": difference, "right": difference <= CLOSE[dtype]})
    return found


def _runs(family: str, cell: CellSpec, H: int, dtype: Any) -> bool:
    """Whether a family computes both passes of a layer of a cell."""
    if family not in FAMILIES:
        return True
    layer, device = rnnjit.LayerSpec(cell, 12, H, 2, True), driver_launcher(0).properties
    return not (
        why_not(family, layer, 6, dtype, "forward", device)
        or why_not(family, layer, 6, dtype, "backward", device)
    )


def calls_with_resets(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Calls whose kernels reset the states; none if the backend's do not."""
    backend = rnnjit.backends()[options.backend]
    if not backend.resets_in_kernel:
        return []
    dtypes = QUICK_DTYPES if options.quick else tuple(CLOSE)
    shapes, given = RESETS[: 1 if options.quick else None], (options.device, options.rounds)
    return [
        resets.measure(backend, cell, shape, dtype, *given, CLOSE[dtype])
        for cell, dtype, shape in itertools.product(options.cell, dtypes, shapes)
    ]


def step_times(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds that one more time step of a single sequence takes, by family and hidden size."""
    found = []
    for cell, (family, backend), H in itertools.product(
        options.cell, backends_by_family(options).items(), options.hidden
    ):
        if not has_room(family, H, cell):
            continue
        row: dict[str, Any] = {"cell": cell, "family": family, "H": H}
        for passes in PASSES:
            times = []
            for T in LONG:
                call = Call(T, 1, H, "float32", False, options.device, cell)
                module = rnnjit.compile(call.rnn, backend=backend)
                run = {"one": call.run(module, passes)}
                times.append(medians(run, options.rounds, options.device)["one"])
            row[passes] = (times[1] - times[0]) / (LONG[1] - LONG[0])
        found.append(row)
    return found


def waits_for_the_device(options: argparse.Namespace) -> str:
    """Whether a call makes the host wait: "no", or torch's message.

    Besides torch's layers it is one of a cell with parameters and noise.
    """
    if options.device == "cpu":
        return "not run: there is no device"
    calls = itertools.product([*options.cell, None], (False, True))
    for cell, packed in calls:
        call = Call(20, 4, 64, "float32", packed, options.device, cell or "rnn")
        noisy = rnnjit.Recurrent(rnnjit.cells.LeakyRNN(64, 64, sigma=0.1)).to(options.device)
        module = rnnjit.compile(call.rnn if cell else noisy, backend=options.backend)
        run = call.run(module, "forward_backward")
        run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            return str(error)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "no"


def show(results: list[dict[str, Any]], title: str) -> None:
    """Print one row for each shape, and the geometric means."""
    table = Table(title=title, title_justify="left")
    others = {"eager_tf32": "of TF32", "torch_compile": "of torch.compile"}
    for heading in ("T, B, H", "forward ms", "of eager", *others.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("fwd+bwd ms", "of eager", *others.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    ratios: dict[str, list[float]] = {passes: [] for passes in PASSES}
    for result in results:
        cells = [", ".join(map(str, result["shape"]))]
        for passes in PASSES:
            if passes not in result:
                why = "declined" if "declined" in result else "wrong"
                cells += [why, f"{result['difference']:.1e}", *("" for _ in others)]
                continue
            times = result[passes]
            ratios[passes].append(times["ratio"])
            cells += [f"{times['compiled'] * 1e3:.3g}", f"{times['ratio']:.2f}x"]
            found = [times.get(name) for name in others]
            cells += [f"{time / times['compiled']:.2f}x" if time else "" for time in found]
        table.add_row(*cells)
    table.add_section()
    means = [f"{geometric_mean(ratios[p]):.2f}x" if ratios[p] else "" for p in PASSES]
    table.add_row("geometric mean", "", means[0], "", "", "", means[1], "", "")
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def measure_all(
    shapes: list[tuple[int, int, int]],
    dtype: str,
    packed: bool,
    cell: str,
    options: argparse.Namespace,
    results: list[dict[str, Any]],
) -> None:
    """Measure all shapes, add them to `results` and print their table."""
    before = len(results)
    try:
        for shape in track(shapes, console=Console(stderr=True), transient=True):
            results.append(measure(shape, dtype, packed, cell, options))
    finally:
        layout = "packed" if packed else "dense"
        title = f"{options.backend} against eager, {cell}, {dtype}, {layout}"
        show(results[before:], title)


def main() -> None:
    """Check, time and print everything; write the JSON file."""
    parser = argparse.ArgumentParser(description="A backend on a GPU: right, and how fast.")
    parser.add_argument("--backend", choices=rnnjit.backends(), default="cuda")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cell", nargs="+", choices=sorted(LAYERS), default=["rnn"])
    parser.add_argument("--quick", action="store_true", help="a few shapes, the quick cases")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    extents, options.hidden = QUICK if options.quick else (EXTENTS, HIDDEN)
    checked = check(options)
    for what, said in checked.items():
        print(f"{what}: {said}")
    waits = waits_for_the_device(options)
    print(f"host waits for the device: {waits}")
    own = user_cells_by_family(options)
    for row in own:
        what = "{family}, {cell}, {dtype}, H={H}, packed={packed}: {difference:.1e}".format(**row)
        print(f"user cell, {what} {'' if row['right'] else 'WRONG'}")
    anew = calls_with_resets(options)
    for row in anew:
        print(f"with resets, {resets.described(row)}")
    step = step_times(options)
    for row in step:
        times = ", ".join(f"{passes} {row[passes] * 1e6:.2f} us" for passes in PASSES)
        print(f"one more step, {row['cell']}, {row['family']}, B=1, H={row['H']}: {times}")
    results: list[dict[str, Any]] = []
    shapes = [(*extent, H) for extent, H in itertools.product(extents, options.hidden)]
    try:
        for cell, dtype, packed in itertools.product(options.cell, CLOSE, (False, True)):
            measure_all(shapes, dtype, packed, cell, options, results)
    except KeyboardInterrupt:
        print("interrupted: what follows was not measured")
    if options.json is not None:
        device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
        data: dict[str, Any] = {"environment": environment().as_dict(), "device": device}
        data |= {"checks": checked, "host_waits": waits, "user_cells": own, "resets": anew}
        data |= {"seconds_per_step": step, "results": results}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
