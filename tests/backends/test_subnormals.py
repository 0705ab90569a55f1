"""Protects subnormal numbers, and the choice to flush them to zero.

`torch.set_flush_denormal` affects only the thread that calls it: torch's own operators flush in
that thread's share of the work, and not in those of other threads. Backends do the same, and do not
change the setting.
"""

import subprocess
import sys

import pytest
import torch
from on_cpu import ON_CPU
from torch import nn

import rnnjit

TINY = {torch.float32: 1e-40, torch.float64: 1e-310}
T, B = 40, 9  # enough for compiled chunks of steps, and for some that are left

backends = pytest.mark.parametrize("backend", ON_CPU)
dtypes = pytest.mark.parametrize("dtype", list(TINY), ids=["f32", "f64"])


@pytest.fixture(autouse=True)
def _as_before():
    """Torch has no way to ask for the state: it is off unless somebody switches it on."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def identity(backend, dtype, H=1):
    """A layer whose states are its inputs, and whose gradients are those that come in."""
    rnn = nn.RNN(H, H, bias=False, nonlinearity="relu", dtype=dtype)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.eye(H))
        rnn.weight_hh_l0.fill_(0.0)
    return rnnjit.compile(rnn, backend=backend)


def states_and_gradients(module, dtype):
    shape = (T, B, module.input_size)
    x = torch.full(shape, TINY[dtype], dtype=dtype, requires_grad=True)
    y, _ = module(x)
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, TINY[dtype]))
    return y.detach(), grad


def flushes():
    """Whether this thread flushes subnormal numbers to zero; torch's other threads never may."""
    if not torch.full((8,), 1e-40).any():
        return True
    assert (torch.full((2**20,), 1e-40) * 1.0 > 0).all()
    return False


@backends
@dtypes
def test_subnormal_numbers_pass_through_exactly(backend, dtype):
    for found in states_and_gradients(identity(backend, dtype), dtype):
        assert torch.equal(found, torch.full_like(found, TINY[dtype]))
    with torch.no_grad():
        y, h_n = identity(backend, dtype)(torch.full((T, B, 1), TINY[dtype], dtype=dtype))
    assert torch.equal(y, torch.full_like(y, TINY[dtype]))
    assert torch.equal(h_n, y[-1:])


@backends
@dtypes
@pytest.mark.parametrize("H", [1, 200])
def test_subnormal_numbers_are_flushed_where_the_thread_asks_for_it(backend, dtype, H):
    module = identity(backend, dtype, H)
    torch.set_num_threads(1)
    assert torch.set_flush_denormal(True)
    for found in states_and_gradients(module, dtype):
        assert not found.any()


@backends
@pytest.mark.parametrize("flush", [False, True], ids=["off", "on"])
@pytest.mark.parametrize("hidden_size", [8, 200], ids=["one thread", "threads"])
def test_the_choice_outlasts_both_passes(backend, flush, hidden_size):
    module = rnnjit.compile(nn.RNN(5, hidden_size), backend=backend)
    torch.set_flush_denormal(flush)
    assert flushes() == flush
    y, h_n = module(torch.randn(T, B, 5))
    assert flushes() == flush
    (y.sum() + h_n.sum()).backward()
    assert flushes() == flush


PROGRAM = """
import torch, rnnjit
for name in {!r}:
    module = rnnjit.compile(torch.nn.RNN(3, 8), backend=name)
    y, h_n = module(torch.randn(40, 9, 3))
    (y.sum() + h_n.sum()).backward()
    assert torch.full((8,), 1e-40).mul(1).count_nonzero() == 8, name
"""


def test_loading_compiled_code_leaves_a_new_process_as_it_is():
    # A library that was linked for fast maths would switch flushing on as it is loaded.
    program = PROGRAM.format(ON_CPU)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
