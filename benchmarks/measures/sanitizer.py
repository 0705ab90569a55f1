"""A backend's quick cases under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from cuda.pathfinder import find_nvidia_binary_utility

from rnnjit_cuda.compiler import ENTRY

TOOLS = ("memcheck", "racecheck")
#: Exit status that the sanitizer is told to return for errors.
_FOUND = 9
#: Seconds for one tool: it checks every access to shared memory.
_PATIENCE = 300
#: Check the project's kernels only, and ignore failed driver calls of libraries.
_OPTIONS = (
    f"--error-exitcode={_FOUND}",
    "--target-processes=all",
    "--report-api-errors=no",
    f"--kernel-name=kernel_substring={ENTRY}",
)
#: Allocate each tensor separately, so that none is adjacent to another.
_APART = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def verdict(tool: str, backend: str, patience: int = _PATIENCE) -> str:
    """A tool's verdict on `rnnjit check BACKEND --quick`: "clean", or what else happened.

    Args:
        tool: one of `TOOLS`.
        backend: a backend's name.
        patience: seconds that it may take.
    """
    path = find_nvidia_binary_utility("compute-sanitizer") or shutil.which("compute-sanitizer")
    if path is None:
        return "not run: compute-sanitizer is not there (pip install nvidia-cuda-sanitizer-api)"
    check = [sys.executable, "-m", "rnnjit", "check", backend, "--quick"]
    command = [path, f"--tool={tool}", *_OPTIONS, *check]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, env=os.environ | _APART
        )
    except subprocess.TimeoutExpired:
        return f"not finished in {patience} s"
    if done.returncode == 0:
        return "clean"
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
    kind = "errors" if done.returncode == _FOUND else f"exit status {done.returncode}"
    return f"{kind}:\n{tail}"
