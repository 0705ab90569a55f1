"""Protects the fast path: it gives what the slow path gives, or is not taken."""

import itertools
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit

SHAPE = (3, 2, 6)


@pytest.fixture
def pair():
    """An eager layer, and its compiled form with a route for SHAPE."""
    torch.manual_seed(0)
    rnn = nn.RNN(6, 6)
    fast = rnnjit.compile(rnn, backend="numba")
    with torch.no_grad():
        fast(torch.randn(SHAPE))
    assert torch.Size(SHAPE) in fast._fast_paths
    return rnn, fast


def agree(pair, *args):
    for eager, ours in zip(*(module(*args) for module in pair), strict=True):
        assert ours.shape == eager.shape
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 4, 6), (9, 1, 6), (5, 3, 6)], ids=str)
def test_short_and_long_way_give_the_same_bits(layers, bidirectional, bias, shape):
    torch.manual_seed(0)
    rnn = nn.RNN(6, 70, layers, bidirectional=bidirectional, bias=bias)
    fast = rnnjit.compile(rnn, backend="numba")
    x, h0 = torch.randn(shape), torch.randn(layers * (1 + bidirectional), shape[1], 70)
    long_way = fast(x, h0)
    with torch.no_grad():
        fast(x, h0)
        assert fast._fast_paths
        short_way = fast(x, h0)
    for expected, found in zip(long_way, short_way, strict=True):
        assert torch.equal(expected, found)
        assert found.is_contiguous()
    with torch.no_grad():
        agree((rnn, fast), x, h0)


@pytest.mark.parametrize("shape", [(1, 4, 6), (4, 1, 6), (4, 3, 6)], ids=str)
def test_batch_first(shape):
    rnn = nn.RNN(6, 5, batch_first=True)
    fast = rnnjit.compile(rnn, backend="numba")
    with torch.no_grad():
        for _ in range(2):
            agree((rnn, fast), torch.randn(shape), torch.randn(1, shape[0], 5))


@torch.no_grad()
def test_inputs_of_every_kind(pair):
    x, h0 = torch.randn(SHAPE), torch.randn(1, 2, 6)
    agree(pair, x)
    agree(pair, x, h0)
    agree(pair, x.transpose(0, 2).contiguous().transpose(0, 2), h0)
    agree(pair, x[:1].expand(SHAPE), h0)
    agree(pair, x, torch.randn(1, 6, 2).transpose(1, 2))
    agree(pair, nn.Parameter(x), h0)
    negated = torch.randn(SHAPE, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    agree(pair, negated, h0)


@torch.no_grad()
def test_changed_weights_are_seen(pair):
    rnn, fast = pair
    x = torch.randn(SHAPE)
    rnn.weight_hh_l0.data.mul_(2)
    agree(pair, x)
    rnn.weight_hh_l0.data = rnn.weight_hh_l0.data.t()
    agree(pair, x)
    rnn.bias_ih_l0.numpy()[:] = 3
    agree(pair, x)
    fresh = nn.Parameter(torch.randn(6, 6))
    rnn.weight_ih_l0 = fast.weight_ih_l0 = fresh
    agree(pair, x)
    del fast.weight_ih_l0, rnn.weight_ih_l0
    rnn.weight_ih_l0 = fast.weight_ih_l0 = torch.randn(6, 6)
    agree(pair, x)


@torch.no_grad()
def test_misfits_raise_what_the_long_way_raises(pair):
    rnn, fast = pair
    x = torch.randn(SHAPE)
    for bad in (torch.randn(1, 3, 6), torch.randn(1, 2, 6).double(), torch.randn(2, 6)):
        with pytest.raises(RuntimeError, match="hx"):
            fast(x, bad)
    with pytest.raises(ValueError, match="float64"):
        fast(x.double())
    rnn.weight_ih_l0.data = torch.randn(6, 5)
    with pytest.raises(RuntimeError, match="weight_ih_l0"):
        fast(x)


@torch.no_grad()
def test_a_changed_configuration_is_seen():
    rnn = nn.RNN(6, 6, 2)
    fast = rnnjit.compile(rnn, backend="numba")
    x = torch.randn(2, 2, 6)
    fast(x)
    rnn.batch_first = fast.batch_first = True
    agree((rnn, fast), x)
    agree((rnn, fast), x)
    rnn.dropout = fast.dropout = 0.5
    for module in (rnn, fast):
        torch.manual_seed(0)
        module(x)
    results = []
    for module in (rnn, fast):
        torch.manual_seed(1)
        results.append(module(x)[0])
    torch.testing.assert_close(*results)
    agree((rnn.eval(), fast.eval()), x)
    fast.double()
    rnn.double()
    agree((rnn, fast), x.double())


def strided_call(kind):
    """One step of a batch-first sequence, and states with gaps, as decoders give them."""
    x = torch.randn(4, 9, 6, dtype=torch.float64)[:, 5]
    states = [torch.randn(8, 5, dtype=torch.float64)[::2] for _ in range(1 + ("LSTM" in kind))]
    if "Cell" not in kind:
        x, states = x[:, None], [state[None] for state in states]
    return x, tuple(states) if len(states) > 1 else states[0]


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        *itertools.product(["RNN", "LSTM", "GRU"], [False, True]),
        *itertools.product(["RNNCell", "LSTMCell", "GRUCell"], [False]),
    ],
)
def test_inputs_with_gaps_do_without_the_calls_of_the_long_way(kind, trained, monkeypatch):
    torch.manual_seed(0)
    form = {} if "Cell" in kind else {"batch_first": True}
    eager = getattr(nn, kind)(6, 5, dtype=torch.float64, **form)
    fast = rnnjit.compile(eager, backend="numba")
    monkeypatch.setattr("rnnjit.execution.fast_call.run_stack", None)
    monkeypatch.setattr("rnnjit.frontend.compiled_base.run_stack", None)
    with torch.set_grad_enabled(trained):
        for _ in range(2):
            x, states = strided_call(kind)
            x.requires_grad_(trained)
            found, expected = fast(x, states), eager(x, states)
            torch.testing.assert_close(found, expected)
            if trained:
                inputs = x, eager.weight_hh_l0
                ours, theirs = (torch.autograd.grad(y[0].sum(), inputs) for y in (found, expected))
                torch.testing.assert_close(ours, theirs)


def gradients(module, x, h0, grad_y, grad_h_n):
    module.zero_grad()
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    torch.autograd.backward(module(x, h0), (grad_y, grad_h_n))
    return [x.grad, h0.grad, *[weight.grad for weight in module.parameters()]]


@pytest.mark.parametrize("backend", ["numba", "eager"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_the_second_call_are_eager_s(backend, batch_first, layers):
    torch.manual_seed(0)
    rnn = nn.RNN(6, 7, layers, batch_first=batch_first)
    fast = rnnjit.compile(rnn, backend=backend)
    fast(torch.randn(SHAPE, requires_grad=True), torch.randn(layers, SHAPE[not batch_first], 7))
    for _ in range(2):
        states = (layers, SHAPE[not batch_first], 7)
        args = torch.randn(SHAPE), torch.randn(states)
        grads = torch.randn(*SHAPE[:2], 7), torch.randn(states)
        for expected, found in zip(
            gradients(rnn, *args, *grads), gradients(fast, *args, *grads), strict=True
        ):
            torch.testing.assert_close(found, expected)
    assert len(fast._fast_paths) == 1


def test_what_needs_a_gradient_may_change(pair):
    _, fast = pair
    x = torch.randn(SHAPE)
    assert fast(x)[0].requires_grad
    fast.requires_grad_(False)
    assert not fast(x)[0].requires_grad
    assert fast(x.clone().requires_grad_())[0].requires_grad
    fast.weight_hh_l0.requires_grad_(True)
    fast(x)[0].sum().backward()
    assert fast.weight_ih_l0.grad is None
    assert fast.weight_hh_l0.grad is not None
    with torch.inference_mode():
        assert fast(x)[0].is_inference()
    assert not fast(x)[0].is_inference()
    assert 1 < len(fast._fast_paths[x.shape]) <= 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use
def test_transforms_go_the_long_way(pair):
    _, fast = pair
    x = torch.randn(SHAPE)
    mapped = torch.func.vmap(lambda h0: fast(x, h0)[0])(torch.randn(4, 1, 2, 6))
    assert mapped.shape == (4, 3, 2, 6)
    fast.requires_grad_(False)
    fast(x)
    slope = torch.func.grad(lambda x: fast(x)[0].sum())(x)
    assert slope.abs().sum() > 0
    with forward_ad.dual_level():
        y, _ = fast(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(y).tangent is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x)[0].dtype == torch.bfloat16


def test_dispatch_modes_go_the_long_way(pair):
    rnn, fast = pair
    x, h0 = torch.randn(SHAPE), torch.randn(1, 2, 6)
    packed = pack_padded_sequence(x, torch.tensor([3, 2]))

    def refuse(*_):
        raise AssertionError("a kernel would get tensors without memory")

    for given in (x, packed):
        fast(given, h0)
    for path in itertools.chain(*fast._fast_paths.values()):
        path.run = refuse
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(fast(x, h0)[0], type(mode.from_tensor(x)))
        with pytest.raises(DataDependentOutputException):  # as in eager
            fast(packed, h0)
        with pytest.raises(DataDependentOutputException):
            rnn(packed, h0)


def test_routes_are_not_copied_and_bounded(pair):
    _, fast = pair
    assert fast.__getstate__()["_fast_paths"] == {}
    with torch.no_grad():
        for batch in range(1, 600):
            fast(torch.randn(1, batch, 6))
    assert 0 < len(fast._fast_paths) <= 512


def test_threads_share_a_module(pair):
    rnn, fast = pair
    inputs = [(torch.randn(SHAPE), torch.randn(1, 2, 6)) for _ in range(4)]
    with torch.no_grad():
        expected = [rnn(*args)[0] for args in inputs]
    wrong = []

    @torch.no_grad()
    def work(i):
        for _ in range(300):
            if not torch.allclose(fast(*inputs[i])[0], expected[i], atol=1e-6):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong


@pytest.mark.parametrize("leak", ["node", "hook"])
def test_states_of_zeros_that_autograd_saved_are_not_those_of_later_calls(leak):
    rnn, x = nn.RNN(5, 7), torch.randn(4, 3, 5)
    fast, expected, saved = rnnjit.compile(rnn, backend="numba"), rnn(x)[0], []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    for _ in range(3):
        if leak == "node":
            y, _ = fast(x)
            # Without y, older releases of torch free what its node has saved.
            saved += y.grad_fn.saved_tensors
        else:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                fast(x)
    with torch.no_grad():
        for tensor in saved:
            if tensor.shape == (1, 3, 7):
                tensor.fill_(5.0)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            torch.testing.assert_close(fast(x)[0], expected)
