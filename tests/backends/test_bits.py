"""Protects reproducibility: what must not change a bit of a result.

On `numba` and `tvm`: the number of threads, the other rows of the batch and a row's place among
them, padding, strides, and the run, in this process or another one. That holds for y, the states
and the gradients of x and h0. The gradients of the weights are sums over all rows, and so do not
depend on threads, strides and runs.

`inductor` and `eager` promise less: the same bits for the same call on as many threads. Their
matrix products are torch's, whose order of summation depends on the size of the batch.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from covered import in_full, in_turn
from folders import SUPPORT
from on_cpu import ON_CPU
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnjit

EXACT = [name for name in ("numba", "tvm") if name in ON_CPU]
exact = pytest.mark.parametrize("backend", EXACT)
packings = pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def lengths_of(T, B):
    """One sequence of T steps, others of ever fewer, some of the same length."""
    return (torch.linspace(T, 1, B).div(2).ceil() * 2).clamp(1, T).long()


def results(module, x, h0, lengths=None):
    """Outputs and gradients by name; y, and the gradients of x, as `[T, B, ...]`."""
    x, h0 = x.detach().requires_grad_(), h0.detach().requires_grad_()
    packed = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, h_n = module(packed, h0)
    y = y if lengths is None else pad_packed_sequence(y, total_length=len(x))[0]
    weights = dict(module.named_parameters())
    # A row's share of the loss depends on nothing but the row.
    loss = y.square().sum() + h_n.sin().sum()
    names, leaves = ["x", "h0", *weights], [x, h0, *weights.values()]
    grads = torch.autograd.grad(loss, leaves)
    return {"y": y.detach(), "h_n": h_n.detach(), **dict(zip(names, grads, strict=True))}


def assert_same(found, expected, names=None):
    for name in names or expected:
        assert torch.equal(found[name], expected[name]), name
        assert torch.equal(found[name].signbit(), expected[name].signbit()), name


def call(T, B, I, H, layers=1, bidirectional=False, nonlinearity="tanh", dtype=torch.float32):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, layers, nonlinearity, bidirectional=bidirectional, dtype=dtype)
    x, h0 = torch.randn(T, B, I), torch.randn(layers * (1 + bidirectional), B, H)
    return rnn, x.to(dtype), h0.to(dtype)


@pytest.fixture
def threads(always_teams):
    """Sets torch's thread count for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SHAPES = [
    # T, B, I, H, layers, bidirectional
    (6, 1, 5, 300, 1, False),
    (6, 1, 40, 200, 1, True),
    (9, 2, 17, 250, 2, False),
    (7, 8, 33, 64, 1, True),
    (40, 11, 40, 90, 1, True),
    (40, 33, 20, 47, 1, False),
    (5, 70, 129, 130, 1, False),
]


@exact
@packings
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads(backend, packed, shape, threads):
    rnn, x, h0 = call(*shape)
    lengths = lengths_of(*shape[:2]) if packed else None
    module = rnnjit.compile(rnn, backend=backend)
    threads(1)
    alone = results(module, x, h0, lengths)
    for count in (2, 3, 4, 7):
        threads(count)
        assert_same(results(module, x, h0, lengths), alone)


ROWS = [[0], [22], [3, 4], [17, 2, 9], list(range(8)), list(range(22, -1, -1)), [5] * 6]


@exact
@dtypes
@packings
@pytest.mark.parametrize("config", [(37, 83, 1, False), (5, 33, 2, True)], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_company_and_place_in_the_batch(backend, packed, config, nonlinearity, dtype):
    rnn, x, h0 = call(11, 23, *config, nonlinearity, dtype)
    lengths = lengths_of(11, 23) if packed else None
    module = rnnjit.compile(rnn, backend=backend)
    whole = results(module, x, h0, lengths)
    for rows in ROWS:
        part = results(module, x[:, rows], h0[:, rows], lengths[rows] if packed else None)
        by_rows = {name: whole[name][:, rows] for name in ("y", "h_n", "x", "h0")}
        assert_same(part, by_rows)


@exact
@dtypes
def test_padding(backend, dtype):
    rnn, x, h0 = call(11, 9, 12, 70, 2, True, dtype=dtype)
    module = rnnjit.compile(rnn, backend=backend)
    lengths = lengths_of(11, 9)
    together = results(module, x, h0, lengths)
    for b, length in enumerate(lengths):
        alone = results(module, x[:length, b : b + 1], h0[:, b : b + 1])
        for name in ("y", "x"):
            assert torch.equal(together[name][:length, b : b + 1], alone[name])
            assert not together[name][length:, b].any()
        assert_same({n: together[n][:, b : b + 1] for n in ("h_n", "h0")}, alone, ("h_n", "h0"))


LAYOUTS = {
    "transposed": lambda t: (
        t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
    ),
    "stepped": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "offset": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
    "inside of a wider tensor": lambda t: torch.nn.functional.pad(t, (1, 2))[..., 1:-2],
}


@exact
@dtypes
@packings
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(backend, packed, layout, dtype):
    rnn, x, h0 = call(7, 9, 21, 40, 2, True, dtype=dtype)
    lengths = lengths_of(7, 9) if packed else None
    contiguous = results(rnnjit.compile(rnn, backend=backend), x, h0, lengths)
    for parameter in rnn.parameters():
        parameter.data = LAYOUTS[layout](parameter.data)
    module = rnnjit.compile(rnn, backend=backend)
    assert_same(results(module, LAYOUTS[layout](x), LAYOUTS[layout](h0), lengths), contiguous)


def digest(backend, packed):
    """A hash of every bit of a call's results, on two threads."""
    torch.set_num_threads(2)
    rnn, x, h0 = call(40, 16, 24, 100, 2, True)
    found = results(
        rnnjit.compile(rnn, backend=backend), x, h0, lengths_of(40, 16) if packed else None
    )
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in found.values()))


PROGRAM = "from test_bits import digest; print(digest({!r}, {!r}).hexdigest())"


@pytest.mark.parametrize(
    ("backend", "packed"),
    [*in_turn(EXACT, [False, True]), *in_full(sorted({*ON_CPU} - {*EXACT}), [False, True])],
)
def test_runs_in_this_process_and_in_another(backend, packed, threads):
    here = {digest(backend, packed).hexdigest() for _ in range(3)}
    program = PROGRAM.format(backend, packed)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert here == {ran.stdout.strip()}
