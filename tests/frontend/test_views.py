"""Protects that results which eager owns are no views: torch forbids some changes of views."""

import pytest
import torch
from covered import covered
from on_cpu import ON_CPU
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnjit
from rnnjit.testing import RecomputeBackend

T, B, I, H = 5, 3, 4, 6
TWO = {"num_layers": 2, "dropout": 0.3}
LAYERS = [{}, {"batch_first": True}, {**TWO}, {**TWO, "batch_first": True}]
EAGER_ONLY = [nn.LSTM, nn.GRU]
ALL = rnnjit.backends()
EAGER = ALL["eager"]
#: Backends of nn.RNN and nn.RNNCell; inductor compiles nothing for so few steps.
BACKENDS = [RecomputeBackend(), *(ALL[name] for name in ON_CPU if name != "eager")]
EVERY = [(nn.RNN, b) for b in [*BACKENDS, EAGER]] + [(kind, EAGER) for kind in EAGER_ONLY]
INPUTS = {
    "dense": lambda x: x,
    "one sequence": lambda x: x[:, :1].contiguous(),
    "one step": lambda x: x[:1],
    "strided": lambda x: x.mT.contiguous().mT,
    "needs a gradient": lambda x: x.clone().requires_grad_(),
    "unbatched": lambda x: x[:, 0].contiguous(),
    "packed": lambda x: pack_sequence([x[:n, b] for b, n in enumerate((T, 3, 3))]),
    "unsorted": lambda x: pack_sequence([x[:n, b] for b, n in enumerate((2, T, 3))], False),
}


def results(module, *given):
    """The tensors that a call returns; the same seed draws the same dropout masks."""
    torch.manual_seed(2)
    found = module(*given)
    if isinstance(found, torch.Tensor):
        return [found]
    y, states = found
    first = y.data if isinstance(y, PackedSequence) else y
    return [first, *(states if isinstance(states, tuple) else (states,))]


def allowed(call, index):
    """What may be done with one result: whether it is its own, and which changes torch takes."""
    owned, found = not call()[index]._is_view(), set()
    for name, change in CHANGES.items():
        try:
            change(call()[index])
            found.add(name)
        except RuntimeError as error:
            assert "view" in str(error).lower()  # noqa: PT017 - any other error is a fault
    return found | ({"owned"} if owned else set())


def add(result):
    """Add a tensor with gradients, in place."""
    with torch.enable_grad():
        result += torch.ones((), requires_grad=True)


CHANGES = {"detach_": lambda result: result.detach_(), "add": add}


def strides(result):
    """The strides that decide where elements lie."""
    return [step for size, step in zip(result.shape, result.stride(), strict=True) if size > 1]


def assert_allows(module, backend, *given, recorded=True):
    """Whatever eager allows on a result, the first and later calls of the compiled module do."""
    with torch.set_grad_enabled(recorded):
        compiled = rnnjit.compile(module, backend=backend)
        expected = results(module, *given)
        for index, eager in enumerate(expected):
            wanted = allowed(lambda: results(module, *given), index)
            fresh = rnnjit.compile(module, backend=backend)
            first = results(fresh, *given)[index]
            assert "owned" not in wanted or not first._is_view()
            for _ in range(2):
                assert wanted <= allowed(lambda: results(compiled, *given), index)
            later = results(compiled, *given)[index]
            for result in (first, later):
                torch.testing.assert_close(result, eager, rtol=1e-4, atol=1e-5)
                assert strides(result) == strides(eager)


@pytest.mark.parametrize(
    ("which", "config", "form", "recorded"), covered(EVERY, LAYERS, list(INPUTS), [True, False])
)
def test_layers(which, config, form, recorded):
    torch.manual_seed(0)
    kind, backend = which
    x = INPUTS[form](torch.randn(T, B, I))
    if config.get("batch_first") and isinstance(x, torch.Tensor) and x.dim() == 3:
        x = x.detach().transpose(0, 1).contiguous().requires_grad_(x.requires_grad)
    assert_allows(kind(I, H, **config), backend, x, recorded=recorded)


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("state", [None, torch.ones(B, H), nn.Parameter(torch.ones(B, H))])
@pytest.mark.parametrize("backend", [*BACKENDS, EAGER], ids=lambda b: b.name)
def test_cells(backend, state, recorded):
    given = torch.randn(B, I), *(() if state is None else (state,))
    assert_allows(nn.RNNCell(I, H), backend, *given, recorded=recorded)


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("config", LAYERS[:2], ids=str)
def test_under_a_profiler(config, recorded):
    with torch.autograd.profiler.profile():
        assert_allows(nn.RNN(I, H, **config), "auto", torch.randn(3, 2, I), recorded=recorded)


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("config", LAYERS, ids=str)
def test_resets(config, recorded):
    fast = rnnjit.compile(nn.RNN(I, H, **config))
    x, reset = torch.randn(2, 3, I), torch.tensor([[False, True, False], [True, False, False]])
    with torch.set_grad_enabled(recorded):
        for index in range(2):
            assert allowed(lambda: results(fast, x, None, reset), index) == {"owned", *CHANGES}
        assert not results(fast, x[0], None, reset[0])[0]._is_view()


@pytest.mark.parametrize("config", LAYERS, ids=str)
@pytest.mark.parametrize(("kind", "backend"), EVERY, ids=lambda v: getattr(v, "name", None))
def test_gradients_after_a_change(kind, backend, config):
    """The graph needs no value or layout of a result that was changed in place."""
    torch.manual_seed(0)
    module, x = kind(I, H, **config), torch.randn(T, B, I).mT.contiguous().mT
    compiled, scale = rnnjit.compile(module, backend=backend), torch.full((), 1.5)
    found = {}
    for name, given in (("contiguous", x.contiguous()), ("strided", x)):
        for which in (module, compiled, compiled):
            y, *states = results(which, given)
            if kind is not nn.LSTM:  # torch's own operator keeps y for its backward pass
                y += 0.25
            loss = (y * scale).square().sum() + states[0].mul_(2).sum()
            grads = torch.autograd.grad(loss, list(module.parameters()))
            torch.testing.assert_close(grads, found.setdefault(name, grads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, EAGER], ids=lambda b: b.name)
def test_truncated_backpropagation(backend):
    """The state is cut from its history in place between the windows of a long sequence."""
    torch.manual_seed(0)
    cell = nn.RNNCell(I, H)
    windows, grads = torch.randn(4, 3, B, I), []
    for module in (cell, rnnjit.compile(cell, backend=backend)):
        cell.zero_grad()
        h = torch.zeros(B, H)
        for window in windows:
            for x in window:
                h = module(x, h)
            h.square().sum().backward()
            h.detach_()
        grads.append([p.grad.clone() for p in cell.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
