"""The resources that every CUDA kernel takes of a multiprocessor, found without a GPU.

    python benchmarks/cuda_kernels.py [--only TEXT ...] [--arch 80 90] [--largest] [--cell lstm gru]

Each variant is compiled to PTX and assembled by ptxas (wheel nvidia-cuda-nvcc), for each
architecture; those with "states" take the gradients of the states of all steps. The exit status is
1 if a persistent kernel spills registers or has a stack: its loop over the time steps would then go
through memory.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import msgspec
from measures import user_cells
from rich.console import Console
from rich.table import Table

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, normal_form, with_resets
from rnnjit.runtime import object_cache
from rnnjit_cuda.kernels import (
    KernelKey,
    Share,
    column_tile,
    lanes,
    most_threads,
    share,
    shared_bytes,
    threads,
    variants,
)

#: Bytes of shared memory that a block may have, by architecture (CUDA C programming guide).
LIMITS = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
_CELLS = {cell.name: cell for cell in (RNN_TANH, RNN_RELU, LSTM, GRU)} | user_cells.CELLS
_CELLS |= {f"{name}-resets": normal_form(with_resets(cell)).cell for name, cell in _CELLS.items()}
#: The hidden sizes for which the table gives shared memory.
_SHOWN = {"register": 128, "block": 128, "grid": 1024, "stream": 1024, "step": 1024}
_USED = re.compile(r"Used (\d+) registers")
_STATIC = re.compile(r"(\d+) bytes smem")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class Use(msgspec.Struct, frozen=True):
    """The resources of a kernel, as ptxas reports them.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        spilled: bytes of the stores and loads of spilled registers.
        shared: bytes of static shared memory.
    """

    registers: int
    stack: int
    spilled: int
    shared: int


def ptxas() -> str:
    """The path of ptxas.

    Raises:
        FileNotFoundError: it is not installed.
    """
    try:
        import nvidia
    except ImportError:
        bases = []
    else:
        bases = [Path(base) for base in nvidia.__path__]
    wheels = [str(path) for base in bases for path in base.glob("*/bin/ptxas")]
    found = wheels[0] if wheels else shutil.which("ptxas")
    if found is None:
        raise FileNotFoundError("there is no ptxas: pip install nvidia-cuda-nvcc")
    return found


def measure(key: KernelKey, arch: int) -> Use:
    """The resources of a kernel, which are kept under the digest of its sources."""
    from rnnjit_cuda.compiler import key_of

    name = key_of(key, divmod(arch, 10))
    kept = object_cache.fetch(name, "ptxas")
    if kept is not None:
        return msgspec.json.decode(kept, type=Use)
    use = _assemble(key, arch)
    object_cache.keep(name, msgspec.json.encode(use), "ptxas")
    return use


def _assemble(key: KernelKey, arch: int) -> Use:
    from rnnjit_cuda.compiler import ptx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx(key, divmod(arch, 10)))
        command = [ptxas(), "-v", f"-arch=sm_{arch}", str(file), "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used, static, stack = _USED.search(report), _STATIC.search(report), _STACK.search(report)
    assert used is not None, report
    assert stack is not None, report
    frame, stores, loads = map(int, stack.groups())
    return Use(int(used[1]), frame, stores + loads, int(static[1]) if static else 0)


def largest(key: KernelKey, arch: int) -> str:
    """The largest hidden size that a block has room for, or "any"."""
    if key.family in ("stream", "step") or not key.cell.has_product:
        return "any"
    H, step = 0, 4
    while _fits(key, H + step, LIMITS[arch]):
        H += step
    return str(H)


def _fits(key: KernelKey, H: int, limit: int) -> bool:
    try:
        return threads(key, H, _part(key, H)) > 0 and shared_bytes(key, H, _part(key, H)) <= limit
    except ValueError:
        return False


def _part(key: KernelKey, H: int) -> Share | None:
    """A block's part for one tile of columns and of rows."""
    return share(key, H, column_tile(key), key.rows) if key.family in ("grid", "stream") else None


def row(key: KernelKey, arch: int, use: Use) -> list[str]:
    """A line of the table."""
    shown = min(_SHOWN[key.family], lanes(key.cell) * key.reach or _SHOWN[key.family])
    shared = use.shared + shared_bytes(key, shown, _part(key, shown))
    bad = bool(use.stack or use.spilled)
    both = (use.stack, use.spilled)
    stack, spilled = (f"[bold red]{n}[/]" if bad and n else str(n) for n in both)
    size = f"{shared:,}" if shared else "-"
    numbers = [str(most_threads(key)), str(use.registers), spilled, stack, size]
    recorded = "yes" if key.recorded else ""
    return [*key.words[:6], recorded, f"sm_{arch}", *numbers, largest(key, arch)]


def table() -> Table:
    """The table's head."""
    shown = ", ".join(f"{family} at H={H}" for family, H in _SHOWN.items())
    result = Table(
        title=f"CUDA kernels (shared memory: {shown}; a grid block with one tile of columns)"
    )
    for name in ("family", "pass", "dtype", "cell"):
        result.add_column(name)
    result.add_column("rows", justify="right")
    result.add_column("reach", justify="right")
    result.add_column("states")
    result.add_column("arch")
    for name in ("threads", "registers", "spills", "stack", "shared", "largest H"):
        result.add_column(name, justify="right")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a persistent kernel spills or has a stack."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=[], help="words of the kernels' names")
    parser.add_argument(
        "--largest",
        action="store_true",
        help="the largest of each family alone: forward in float64, backward in float32",
    )
    parser.add_argument("--arch", nargs="*", type=int, default=[80, 90], choices=sorted(LIMITS))
    parser.add_argument("--cell", nargs="*", default=["tanh", "relu"], choices=sorted(_CELLS))
    options = parser.parse_args(arguments)
    cells = [_CELLS[name] for name in options.cell]
    keys = [k for k in variants(cells) if all(word in k.words for word in options.only)]
    if options.largest:
        # The last of each kind has the most rows, or the longest reach.
        dtypes = {"forward": "float64", "backward": "float32"}
        keys = [k for k in keys if k.dtype == dtypes[k.pass_]]
        kinds = {
            (k.family, k.pass_, k.recorded, None if k.cell.is_elman else k.cell): k for k in keys
        }
        keys = list(kinds.values())
    jobs = list(product(keys, options.arch))
    shown, bad = table(), []
    with ProcessPoolExecutor() as pool:
        for (key, arch), use in zip(jobs, pool.map(measure, *zip(*jobs, strict=True)), strict=True):
            shown.add_row(*row(key, arch, use))
            if key.family != "step" and (use.spilled or use.stack):
                bad.append(f"{key} sm_{arch}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(shown)
    console.print(f"{len(jobs)} kernels; {len(bad)} persistent ones spill or have a stack")
    for name in bad:
        console.print(f"[bold red]{name}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
