"""Protects subnormal numbers, and the choice to flush them to zero.

`torch.set_flush_denormal` affects only the thread that calls it: torch's own operators flush in
that thread's share of the work, and not in those of other threads. Backends do the same, and do not
change the setting. On x86-64 the backward kernels of numba and tvm flush all the same, unless
RNNJIT_SUBNORMALS says not to.
"""

import platform
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from covered import in_turn
from kinds import called, first_states, layer, taken
from on_cpu import ON_CPU
from teams import forget_plans
from torch import nn

import rnnjit
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

TINY = {torch.float32: 1e-40, torch.float64: 1e-310}
T, B = 40, 9  # enough for compiled chunks of steps, and for some that are left

#: Those with a choice for their backward kernels.
WITH_KERNELS = [name for name in ("numba", "tvm") if name in ON_CPU]
MODES = ["flush", "exact"]
X86 = platform.machine().lower() in ("x86_64", "amd64")

with_kernels = pytest.mark.parametrize("backend", WITH_KERNELS)
counts = pytest.mark.parametrize("threads", [1, 2])
dtypes = pytest.mark.parametrize("dtype", list(TINY), ids=["f32", "f64"])
#: Inductor compiles for many seconds.
backends_and_dtypes = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(
            *(name, dtype),
            id=f"{name}-{dtype}",
            marks=pytest.mark.full if name == "inductor" else (),
        )
        for name in ON_CPU
        for dtype in TINY
    ],
)


@pytest.fixture(autouse=True)
def _as_before():
    """Torch has no way to ask for the state: it is off unless somebody switches it on."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def forget_libraries():
    """The next calls load their kernels anew."""
    for name in WITH_KERNELS:
        import_module(f"rnnjit_{name}.library").library.made.clear()
    forget_plans()


@pytest.fixture
def switch(monkeypatch):
    """A function that sets RNNJIT_SUBNORMALS, for kernels that are called from then on."""

    def to(mode):
        monkeypatch.setenv("RNNJIT_SUBNORMALS", mode)
        forget_libraries()

    yield to
    monkeypatch.undo()
    forget_libraries()


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


@backends_and_dtypes
def test_subnormal_numbers_pass_through_exactly(backend, dtype, switch):
    switch("exact")
    for found in states_and_gradients(identity(backend, dtype), dtype):
        assert torch.equal(found, torch.full_like(found, TINY[dtype]))


def holding(which, dtype, H):
    """A layer whose last state stays as it is given, since its gates are open or shut."""
    rnn = layer(which.kind, H, H, dtype)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.fill_(0.0)
        # Of nn.LSTM c' = f c + i g, with f of 1 and i and g of 0; of nn.GRU h' = z h, with z of 1.
        rnn.bias_ih_l0.view(-1, H)[1] = 200.0
        rnn.bias_ih_l0.view(-1, H)[0] = -800.0
    return rnnjit.compile(rnn, backend=which.backend)


@pytest.mark.parametrize(
    ("which", "dtype"),
    [
        pytest.param(
            *(which, dtype),
            id=f"{which}-{dtype}",
            marks=pytest.mark.full if (which.backend, dtype) == ("inductor", torch.float64) else (),
        )
        for which in taken(ON_CPU, ("LSTM", "GRU"))
        for dtype in TINY
    ],
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("H", [1, 70])
def test_a_subnormal_state_is_held_exactly_and_its_gradient_as_chosen(
    which, dtype, mode, H, switch
):
    switch(mode)
    module = holding(which, dtype, H)
    tiny = torch.full((1, B, H), TINY[dtype], dtype=dtype)
    hx = tuple(torch.zeros_like(state) for state in first_states(module, B))
    hx = (*hx[:-1], tiny.clone().requires_grad_())
    _, last = called(module, torch.zeros(T, B, H, dtype=dtype), hx)
    assert torch.equal(last[-1], tiny)
    (grad,) = torch.autograd.grad(last[-1], hx[-1], tiny)
    flushed = mode == "flush" and X86 and which.backend in WITH_KERNELS
    assert torch.equal(grad, torch.zeros_like(tiny) if flushed else tiny)


@backends_and_dtypes
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_subnormal_states_are_exact_by_default(backend, dtype, grad):
    with torch.set_grad_enabled(grad):
        y, h_n = identity(backend, dtype)(torch.full((T, B, 1), TINY[dtype], dtype=dtype))
    assert torch.equal(y, torch.full_like(y, TINY[dtype]))
    assert torch.equal(h_n, y[-1:])


@with_kernels
@counts
@dtypes
@pytest.mark.parametrize("H", [1, 200])
def test_subnormal_gradients_are_flushed_by_default(
    backend, threads, dtype, H, switch, always_teams
):
    switch("")
    torch.set_num_threads(threads)
    _, grad = states_and_gradients(identity(backend, dtype, H), dtype)
    assert torch.equal(grad, torch.full_like(grad, 0.0 if X86 else TINY[dtype]))


@backends_and_dtypes
@pytest.mark.parametrize("mode", MODES)
def test_relu_passes_gradients_on_where_states_are_subnormal(backend, dtype, mode, switch):
    switch(mode)
    x = torch.full((T, B, 1), TINY[dtype], dtype=dtype, requires_grad=True)
    y, _ = identity(backend, dtype)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.ones_like(grad))


def gradients_through_last_states(module, x):
    """Of the input and the weights, on a way so long that they become subnormal."""
    x = x.clone().requires_grad_()
    _, last = module(x)
    last = last if isinstance(last, tuple) else (last,)
    return torch.autograd.grad(sum(state.sum() for state in last), [x, *module.parameters()])


@pytest.mark.parametrize("which", taken(WITH_KERNELS, ("tanh", "LSTM", "GRU")), ids=str)
@counts
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_on_the_last_state(which, threads, mode, switch, always_teams):
    switch(mode)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rnn, x = layer(which.kind, 5, 24), torch.randn(300, 9, 5)
    wide = layer(which.kind, 5, 24, torch.float64)
    wide.load_state_dict(rnn.state_dict())
    fast = rnnjit.compile(rnn, backend=which.backend)
    modules, inputs = (wide, rnn, fast), (x.double(), x, x)
    true, eager, found = map(gradients_through_last_states, modules, inputs)
    for i, (truth, expected, got) in enumerate(zip(true, eager, found, strict=True)):
        own, scale = largest(errors_of(expected, truth)), largest(truth)
        judge(f"gradient {i}", "backward", got, Expected(expected, truth, own, scale))

    limit = torch.finfo(torch.float32).tiny
    subnormal = (found[0] != 0) & (found[0].abs() < limit)
    assert ((true[0] != 0) & (true[0].abs() < limit)).any()
    assert subnormal.any() == (mode == "exact" or not X86)


def test_an_unknown_choice_is_named(switch):
    switch("denormal")
    message = r"RNNJIT_SUBNORMALS must be one of \['flush', 'exact'\], got 'denormal'"
    for backend in WITH_KERNELS:
        with pytest.raises(ValueError, match=message):
            identity(backend, torch.float32)(torch.ones(T, B, 1))


@backends_and_dtypes
@pytest.mark.parametrize("H", [1, 200])
def test_subnormal_numbers_are_flushed_where_the_thread_asks_for_it(backend, dtype, H):
    module = identity(backend, dtype, H)
    torch.set_num_threads(1)
    assert torch.set_flush_denormal(True)
    for found in states_and_gradients(module, dtype):
        assert not found.any()


@pytest.mark.parametrize(
    ("which", "hidden_size"),
    in_turn(taken(ON_CPU, ("tanh", "LSTM", "GRU")), (8, 200)),
    ids=str,
)
@pytest.mark.parametrize("flush", [False, True], ids=["off", "on"])
@counts
def test_the_choice_outlasts_both_passes(which, flush, threads, hidden_size, always_teams):
    module = rnnjit.compile(layer(which.kind, 5, hidden_size), backend=which.backend)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flush)
    assert flushes() == flush
    y, last = called(module, torch.randn(T, B, 5), first_states(module, B))
    assert flushes() == flush
    (y.sum() + sum(state.sum() for state in last)).backward()
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
