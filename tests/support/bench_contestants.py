"""Contestants in plain NumPy, which start quickly: right, wrong, broken, hanging, or telling."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from rnnjit.bench.contestants.base import Contestant, Ready
from rnnjit.bench.contestants.eager import Eager

NOTES = "RNNJIT_TEST_NOTES"  # the variable with the file that `note` appends to


def note(**facts):
    with Path(os.environ[NOTES]).open("a") as file:
        file.write(json.dumps(facts) + "\n")


class Plain(Contestant):
    """One layer, tanh, dense; the others are this one but for what they say."""

    name = title = "plain"
    packages = ("numpy",)

    def declines(self, case):
        plain = (case.cell, case.layers, case.nonlinearity, case.packed)
        return "" if plain == ("rnn", 1, "tanh", False) else "no"

    def prepare(self, case, arrays):
        training = case.mode == "training"
        return Ready(
            lambda: results_of(arrays, training=training),
            lambda: results_of(arrays, training=training),
        )


def results_of(arrays, *, training):
    w_ih, w_hh, b_ih, b_hh = arrays.weights.values()
    h, states = arrays.h0[0], [arrays.h0[0]]
    for row in arrays.x @ w_ih.T + (b_ih + b_hh):
        h = np.tanh(row + h @ w_hh.T)
        states.append(h)
    y = np.stack(states[1:])
    found = {"y": y, "h_n": h[None]}
    if not training:
        return found
    carried, rows = arrays.grad_h_n[0], []
    for grad_y, h in zip(arrays.grad_y[::-1], y[::-1], strict=True):
        rows.append((grad_y + carried) * (1 - h * h))
        carried = rows[-1] @ w_hh
    g = np.stack(rows[::-1])
    grads = {
        "x": g @ w_ih,
        "h0": carried[None],
        "weight_ih_l0": np.einsum("tbh,tbi->hi", g, arrays.x),
        "weight_hh_l0": np.einsum("tbh,tbi->hi", g, np.stack(states[:-1])),
        "bias_ih_l0": g.sum((0, 1)),
        "bias_hh_l0": g.sum((0, 1)),
    }
    return found | {f"grad {name}": grad for name, grad in grads.items()}


class Changed(Plain):
    """Results are what `change` makes of the right ones."""

    def prepare(self, case, arrays):
        ready = super().prepare(case, arrays)
        return Ready(ready.run, lambda: self.change(ready.results()))


class WrongValues(Changed):
    name = title = "wrong values"

    def change(self, results):
        return results | {"y": results["y"] * np.float32(1 + 1e-4)}


class WrongGradient(Changed):
    name = title = "wrong gradient"

    def change(self, results):
        name = "grad weight_hh_l0"
        return results | ({name: results[name] * np.float32(0.999)} if name in results else {})


class NotANumber(Changed):
    name = title = "not a number"

    def change(self, results):
        y = results["y"].copy()
        y[-1, 0, 0] = np.nan
        return results | {"y": y}


class Reversed(Changed):
    """It gives its steps in the wrong order."""

    name = title = "reversed"

    def change(self, results):
        return results | {"y": results["y"][::-1].copy()}


class Forgetful(Plain):
    """Every step begins at h0."""

    name = title = "forgetful"

    def prepare(self, case, arrays):
        if case.mode != "streaming":
            return super().prepare(case, arrays)
        frames = [arrays._replace(x=frame[None]) for frame in arrays.x]
        found = [results_of(frame, training=False) for frame in frames]
        y = np.concatenate([results["y"] for results in found])
        return Ready(lambda: None, lambda: {"y": y, "h_n": y[-1:]})


class Objects(Changed):
    """Its results cannot be read without running what is in them."""

    name = title = "objects"

    def change(self, results):
        return results | {"y": np.array([self], dtype=object)}


class Raising(Plain):
    name = title = "raising"

    def prepare(self, case, arrays):
        raise ValueError("no such\nluck")


class Crashing(Plain):
    name = title = "crashing"

    def prepare(self, case, arrays):
        sys.stderr.write("the last words\n")
        sys.stderr.flush()
        os.abort()


class CrashingLater(Plain):
    """It is right, and crashes in the second round: its calls are long enough for a sample each."""

    name = title = "crashing later"

    def prepare(self, case, arrays):
        ready, calls = super().prepare(case, arrays), 0

        def run():
            nonlocal calls
            calls += 1
            if calls > 5:
                os.abort()
            time.sleep(0.002)

        return Ready(run, ready.results)


class Hanging(Plain):
    name = title = "hanging"

    def prepare(self, case, arrays):
        note(pid=os.getpid())
        time.sleep(600)


class HangingLater(Plain):
    """It hangs in its second case."""

    name = title = "hanging later"
    cases = 0

    def prepare(self, case, arrays):
        self.cases += 1
        if self.cases == 2:
            note(pid=os.getpid())
            time.sleep(600)
        return super().prepare(case, arrays)


class Chatty(Plain):
    """It writes to standard output, by Python and by its file descriptor."""

    name = title = "chatty"

    def prepare(self, case, arrays):
        sys.stdout.write("hello\n")
        sys.stdout.flush()
        os.write(1, b"world\n")
        return super().prepare(case, arrays)


class Hoarding(Plain):
    """Every call fills 64 MiB, and gives it back."""

    name = title = "hoarding"

    def prepare(self, case, arrays):
        ready = super().prepare(case, arrays)
        return Ready(lambda: (np.ones(2**23), ready.run()), ready.results)


class Telling(Plain):
    """It notes what it sees in its process, and every call, which takes 10 ms."""

    name = title = "telling"

    def prepare(self, case, arrays):
        cache = Path(os.environ["RNNJIT_CACHE_DIR"])
        found = sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []
        if case.mode == "cold start":
            (cache / f"left by {os.getpid()}").touch()
        note(name=self.name, pid=os.getpid(), cache=str(cache), found=found, threads=case.threads)

        def run():
            note(run=self.name)
            time.sleep(0.01)

        return Ready(run, super().prepare(case, arrays).results)


class TellingToo(Telling):
    name = title = "telling too"


class Threads(Eager):
    """It notes on how many threads PyTorch and the libraries beside it would run."""

    name = title = "threads"

    def prepare(self, case, arrays):
        ready = super().prepare(case, arrays)
        import torch

        variables = [os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
        cpus = len(os.sched_getaffinity(0))
        note(torch=torch.get_num_threads(), variables=variables, cpus=cpus)
        return ready


class Absent(Plain):
    name = title = "absent one"

    def absent(self):
        raise OSError("its library is broken")
