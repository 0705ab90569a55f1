"""What the contestants without torch share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TypeVar

import numpy as np

from rnnjit.bench.contestant import Array, Arrays, Ready
from rnnjit.bench.records import Case

StateT = TypeVar("StateT")


def not_installed(*packages: str) -> str:
    """Which of some packages are missing, and how to get them; "" if all are there."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} not installed: pip install 'rnnjit[bench]'"


def inference_only(case: Case) -> str:
    """Why an inference engine declines a case; "" of those that it takes."""
    if case.mode == "training":
        return "it only infers: there is no backward pass"
    if case.dtype != "float32":
        return f"its RNN is written for float32, not {case.dtype}"
    return ""


def streaming(
    frames: list[StateT], h0: StateT, step: Callable[[StateT, StateT], tuple[StateT, StateT]]
) -> Ready:
    """A stream of calls of one step.

    Args:
        frames: each `[1, B, I]`, as `step` takes it.
        h0: `[L, B, H]`, as `step` takes it.
        step: gives y `[1, B, H]` and the state to pass to the next step.
    """
    state, frame = h0, frames[0]

    def run() -> None:
        nonlocal state
        _, state = step(frame, state)

    def results() -> Mapping[str, Array]:
        now, ys = h0, []
        for each in frames:
            y, now = step(each, now)
            ys.append(np.array(y))
        return {"y": np.concatenate(ys), "h_n": np.array(now)}

    return Ready(run, results)


def frames_of(arrays: Arrays) -> list[Array]:
    """The frames of a streaming case, each `[1, B, I]`."""
    return list(arrays.x[:, None])
