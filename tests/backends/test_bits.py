"""Protects reproducibility: what must not change a bit of a result.

On `numba` and `tvm`: the number of threads, the other rows of the batch and a row's place among
them, padding, strides, and the run, in this process or another one. That holds for y, the states
and the gradients of x and the initial states. The gradients of the weights are sums over all rows,
and so do not depend on threads, strides and runs.

`inductor` and `eager` promise less: the same bits for the same call on as many threads. Their
matrix products are torch's, whose order of summation depends on the size of the batch.
"""

import hashlib
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from covered import covered, in_full, in_turn
from folders import SUPPORT
from kinds import ELMAN, called, first_states, gated, layer, taken
from on_cpu import ON_CPU
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnjit

EXACT = [name for name in ("numba", "tvm") if name in ON_CPU]
PACKINGS = [False, True]
DTYPES = [torch.float32, torch.float64]
#: Names of results that have a row for each sequence of the batch.
BY_ROW = ("y", "h_n", "c_n", "x", "h0", "c0")


def every(names, *axes, elman=("tanh",)):
    """A decorator: nn.RNN with all combinations, other layers with a covering array of them."""
    elman = [pytest.param(*row) for row in product(taken(EXACT, elman), *axes)]
    return pytest.mark.parametrize(names, elman + covered(gated(EXACT), *axes), ids=str)


def lengths_of(T, B):
    """One sequence of T steps, others of ever fewer, some of the same length."""
    return (torch.linspace(T, 1, B).div(2).ceil() * 2).clamp(1, T).long()


def results(module, x, hx, lengths=None):
    """Outputs and gradients by name; y, and the gradients of x, as `[T, B, ...]`."""
    x, hx = x.detach().requires_grad_(), tuple(state.detach().requires_grad_() for state in hx)
    packed = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = called(module, packed, hx)
    y = y if lengths is None else pad_packed_sequence(y, total_length=len(x))[0]
    states = ("h", "c")[: len(hx)]
    leaves = {"x": x}
    leaves |= {f"{name}0": state for name, state in zip(states, hx, strict=True)}
    leaves |= dict(module.named_parameters())
    # A row's share of the loss depends on nothing but the row.
    loss = y.square().sum() + sum(state.sin().sum() for state in last)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    outputs = {f"{name}_n": state.detach() for name, state in zip(states, last, strict=True)}
    return {"y": y.detach(), **outputs, **dict(zip(leaves, grads, strict=True))}


def assert_same(found, expected, names=None):
    for name in names or expected:
        assert torch.equal(found[name], expected[name]), name
        assert torch.equal(found[name].signbit(), expected[name].signbit()), name


def call(kind, T, B, I, H, layers=1, bidirectional=False, dtype=torch.float32):
    torch.manual_seed(0)
    rnn = layer(kind, I, H, dtype, num_layers=layers, bidirectional=bidirectional)
    return rnn, torch.randn(T, B, I).to(dtype), first_states(rnn, B)


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


@every("which, shape, packed", SHAPES, PACKINGS)
def test_threads(which, shape, packed, threads):
    rnn, x, hx = call(which.kind, *shape)
    lengths = lengths_of(*shape[:2]) if packed else None
    module = rnnjit.compile(rnn, backend=which.backend)
    threads(1)
    alone = results(module, x, hx, lengths)
    for count in (2, 3, 4, 7):
        threads(count)
        assert_same(results(module, x, hx, lengths), alone)


ROWS = [[0], [22], [3, 4], [17, 2, 9], list(range(8)), list(range(22, -1, -1)), [5] * 6]


CONFIGS = [(37, 83, 1, False), (5, 33, 2, True)]


@every("which, config, packed, dtype", CONFIGS, PACKINGS, DTYPES, elman=ELMAN)
def test_company_and_place_in_the_batch(which, config, packed, dtype):
    rnn, x, hx = call(which.kind, 11, 23, *config, dtype)
    lengths = lengths_of(11, 23) if packed else None
    module = rnnjit.compile(rnn, backend=which.backend)
    whole = results(module, x, hx, lengths)
    for rows in ROWS:
        states = tuple(state[:, rows] for state in hx)
        part = results(module, x[:, rows], states, lengths[rows] if packed else None)
        by_rows = {name: whole[name][:, rows] for name in BY_ROW if name in whole}
        assert_same(part, by_rows)


@every("which, dtype", DTYPES)
def test_padding(which, dtype):
    rnn, x, hx = call(which.kind, 11, 9, 12, 70, 2, True, dtype=dtype)
    module = rnnjit.compile(rnn, backend=which.backend)
    lengths = lengths_of(11, 9)
    together = results(module, x, hx, lengths)
    states = [name for name in BY_ROW if name in together and name not in ("x", "y")]
    for b, length in enumerate(lengths):
        own = tuple(state[:, b : b + 1] for state in hx)
        alone = results(module, x[:length, b : b + 1], own)
        for name in ("y", "x"):
            assert torch.equal(together[name][:length, b : b + 1], alone[name])
            assert not together[name][length:, b].any()
        assert_same({n: together[n][:, b : b + 1] for n in states}, alone, states)


LAYOUTS = {
    "transposed": lambda t: (
        t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
    ),
    "stepped": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "offset": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
    "inside of a wider tensor": lambda t: torch.nn.functional.pad(t, (1, 2))[..., 1:-2],
}


@every("which, layout, packed, dtype", list(LAYOUTS), PACKINGS, DTYPES)
def test_strides(which, layout, packed, dtype):
    rnn, x, hx = call(which.kind, 7, 9, 21, 40, 2, True, dtype=dtype)
    lengths = lengths_of(7, 9) if packed else None
    contiguous = results(rnnjit.compile(rnn, backend=which.backend), x, hx, lengths)
    lay = LAYOUTS[layout]
    for parameter in rnn.parameters():
        parameter.data = lay(parameter.data)
    module = rnnjit.compile(rnn, backend=which.backend)
    assert_same(results(module, lay(x), tuple(map(lay, hx)), lengths), contiguous)


def digest(backend, packed):
    """A hash of every bit of the results of a call of each kind of layer, on two threads."""
    torch.set_num_threads(2)
    lengths, found = lengths_of(40, 16) if packed else None, hashlib.sha256()
    for _, kind in taken([backend]):
        rnn, x, hx = call(kind, 40, 16, 24, 100, 2, True)
        values = results(rnnjit.compile(rnn, backend=backend), x, hx, lengths).values()
        found.update(b"".join(tensor.contiguous().numpy().tobytes() for tensor in values))
    return found


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
