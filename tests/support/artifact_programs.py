"""Artifacts as their users meet them: built by a compiler, run as a program, held against eager."""

from __future__ import annotations

import copy
import shutil
import subprocess

import pytest
import torch
from folders import ROOT
from torch import nn

import rnnjit
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

MAIN = ROOT / "examples" / "artifact" / "main.c"


def make_rnn(dtype=torch.float32, **options):
    torch.manual_seed(7)
    return nn.RNN(19, 45, **options).to(dtype).eval()


def assert_as_exact_as_eager(rnn, found, x, hx=None):
    """Hold (y, h_n), or (y data, h_n) of packed input, against eager in float64."""
    with torch.no_grad():
        eager = rnn(x, hx)
        wide = copy.deepcopy(rnn).double()
        truth = wide(x.to(torch.float64), None if hx is None else hx.double())
    for name, got, own, exact in zip(("y", "h_n"), found, eager, truth, strict=True):
        own, exact = getattr(own, "data", own), getattr(exact, "data", exact)
        expected = Expected(own, exact, largest(errors_of(own, exact)), largest(exact))
        judge(name, "forward", getattr(got, "data", got), expected)


def needs(*programs):
    """The paths of programs; skips the test, with the reason, where one is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return [shutil.which(program) for program in programs]


def export(rnn, place, **options):
    return rnnjit.export_artifact(rnn, place / "artifact", **options)


def build(artifact, compiler, *flags):
    """Compile the example program with an artifact."""
    program = artifact.parent / "run"
    warnings = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")
    command = [compiler, "-O1", *warnings, f"-I{artifact}", str(MAIN), str(artifact / "rnn.o")]
    subprocess.run([*command, *flags, "-o", str(program)], check=True, timeout=120)
    return program


def run(command, artifact, rnn, x):
    """What the example program makes of x `[T, B, I]`: y and h_n."""
    T, B, _ = x.shape
    done = subprocess.run(
        [*command, str(artifact / "weights.bin"), str(T), str(B)],
        input=x.numpy().tobytes(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    return split(done.stdout, rnn, x)


def split(content, rnn, x):
    """Y and h_n from their raw numbers, one behind the other."""
    T, B, _ = x.shape
    D = 2 if rnn.bidirectional else 1
    numbers = torch.frombuffer(bytearray(content), dtype=x.dtype)
    count = T * B * D * rnn.hidden_size
    shape = (rnn.num_layers * D, B, rnn.hidden_size)
    return numbers[:count].view(T, B, -1), numbers[count:].view(shape)
