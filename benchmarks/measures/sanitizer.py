"""A backend's quick cases under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import subprocess
import sys

from cuda.pathfinder import find_nvidia_binary_utility

TOOLS = ("memcheck", "racecheck")
#: Exit status that the sanitizer is told to give for what it finds.
_FOUND = 9
#: Seconds for one tool; memory of shared kernels is followed access by access.
_PATIENCE = 300


def verdicts(backend: str) -> dict[str, str]:
    """What each tool says of `rnnjit check BACKEND --quick`: "clean", or what else happened."""
    path = find_nvidia_binary_utility("compute-sanitizer")
    if path is None:
        missing = "not run: compute-sanitizer is not there (pip install nvidia-cuda-sanitizer-api)"
        return dict.fromkeys(TOOLS, missing)
    return {tool: _verdict(path, tool, backend) for tool in TOOLS}


def _verdict(path: str, tool: str, backend: str) -> str:
    options = [f"--tool={tool}", f"--error-exitcode={_FOUND}", "--target-processes=all"]
    command = [path, *options, sys.executable, "-m", "rnnjit", "check", backend, "--quick"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return f"not finished in {_PATIENCE} s"
    if done.returncode == 0:
        return "clean"
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
    kind = "errors" if done.returncode == _FOUND else f"exit status {done.returncode}"
    return f"{kind}:\n{tail}"
