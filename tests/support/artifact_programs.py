"""Artifacts as their users meet them: built by a compiler, run as a program, held against eager."""

from __future__ import annotations

import copy
import shutil
import subprocess
import warnings

import pytest
import torch
from folders import ROOT
from torch import nn

import rnnjit
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

PROGRAMS = ROOT / "examples" / "artifact"


def make_rnn(dtype=torch.float32, kind=nn.RNN, **options):
    """A stack of 19 to 45 features."""
    torch.manual_seed(7)
    return kind(19, 45, **options).to(dtype).eval()


def flat(result):
    """Y and every last state of what a layer returns."""
    y, states = result
    return [y, *([states] if isinstance(states, torch.Tensor) else states)]


def eager(rnn, x, hx=None):
    """What torch's own layer returns."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        return rnn(x, hx)


def assert_as_exact_as_eager(rnn, found, x, hx=None):
    """Hold (y, states), or (y data, states) of packed input, against eager in float64."""
    double = copy.deepcopy(rnn).double()
    wide = hx and tuple(s.double() for s in hx) if isinstance(hx, tuple) else hx
    wide = wide.double() if isinstance(wide, torch.Tensor) else wide
    truth = flat(eager(double, x.to(torch.float64), wide))
    names = ("y", "h_n", "c_n")[: len(truth)]
    for name, got, own, exact in zip(
        names, flat(found), flat(eager(rnn, x, hx)), truth, strict=True
    ):
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


def build(artifact, compiler, *flags, source="main"):
    """Compile an example program with an artifact."""
    program = artifact.parent / source
    strict = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")
    files = (str(PROGRAMS / f"{source}.c"), str(artifact / "rnn.o"))
    command = [compiler, "-O1", *strict, f"-I{artifact}", *files, *flags, "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    return program


def run(command, artifact, rnn, x):
    """What the example program makes of x `[T, B, I]`: y and the last states."""
    T, B, _ = x.shape
    return _run([*command, artifact / "weights.bin", T, B], rnn, x)


def run_steps(command, artifact, rnn, x):
    """What the example program makes of x `[T, B, I]` step by step."""
    return _run([*command, artifact / "weights.bin", x.shape[1]], rnn, x)


def _run(command, rnn, x):
    done = subprocess.run(
        [*map(str, command)],
        input=x.numpy().tobytes(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    return split(done.stdout, rnn, x)


def split(content, rnn, x):
    """Y and the last states from their raw numbers, one behind the other."""
    T, B, _ = x.shape
    numbers = torch.frombuffer(bytearray(content), dtype=x.dtype)
    shapes = [(T, B, out_features(rnn)), *state_shapes(rnn, B)]
    parts = numbers.split([torch.Size(shape).numel() for shape in shapes])
    y, *states = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    return y, states[0] if len(states) == 1 else tuple(states)


def out_features(rnn):
    """D*P."""
    return (2 if rnn.bidirectional else 1) * (rnn.proj_size or rnn.hidden_size)


def state_shapes(rnn, B):
    """The shape of each last state."""
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    h = (count, B, rnn.proj_size or rnn.hidden_size)
    return [h, (count, B, rnn.hidden_size)] if isinstance(rnn, nn.LSTM) else [h]


def random_states(rnn, *batch):
    """States as `hx`, for a batch or an unbatched sequence."""
    shapes = [(count, *batch, size) for count, _, size in state_shapes(rnn, 1)]
    states = tuple(torch.randn(shape, dtype=rnn.weight_ih_l0.dtype) for shape in shapes)
    return states if len(states) > 1 else states[0]
