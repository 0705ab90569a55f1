"""Protects against stale weights: however one changes between calls, the next call uses it."""

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.testing import RecomputeBackend

BACKENDS = [RecomputeBackend(), *(b for b in rnnjit.backends().values() if not b.missing())]
T, B, I, H = 5, 3, 4, 6
NAMES = [name for name, _ in nn.RNN(I, H, 2, bidirectional=True).named_parameters()]


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


def by_data_in_place(module, name, new):
    getattr(module, name).data.copy_(new)


def by_data_assignment(module, name, new):
    getattr(module, name).data = new


def by_numpy_view(module, name, new):
    getattr(module, name).detach().numpy()[...] = new.numpy()


def by_copy_under_no_grad(module, name, new):
    with torch.no_grad():
        getattr(module, name).copy_(new)


def by_set(module, name, new):
    with torch.no_grad():
        getattr(module, name).set_(new)


def by_new_parameter(module, name, new):
    setattr(module, name, nn.Parameter(new))


def by_parameter_dict(module, name, new):
    module._parameters[name] = nn.Parameter(new)


def by_state_dict(module, name, new):
    module.load_state_dict(module.state_dict() | {name: new})


def by_state_dict_assign(module, name, new):
    module.load_state_dict(module.state_dict() | {name: new}, assign=True)


def by_swap_tensors(module, name, new):
    module._flat_weight_refs = []  # as nn.RNNBase does: a tensor with weak references stays put
    torch.utils.swap_tensors(getattr(module, name), nn.Parameter(new))


def by_plain_tensor(module, name, new):
    delattr(module, name)
    setattr(module, name, new)


def by_shared_memory(module, name, new):
    getattr(module, name).data.view(-1)[:] = new.flatten()


CHANGES = [
    by_data_in_place,
    by_data_assignment,
    by_numpy_view,
    by_copy_under_no_grad,
    by_set,
    by_new_parameter,
    by_parameter_dict,
    by_state_dict,
    by_state_dict_assign,
    by_swap_tensors,
    by_plain_tensor,
    by_shared_memory,
]


def fresh(values):
    rnn = nn.RNN(I, H, 2, bidirectional=True, dtype=torch.float64)
    rnn.load_state_dict(values)
    return rnn


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_changed_weight_is_never_stale(backend, change, grad):
    torch.manual_seed(0)
    fast = rnnjit.compile(nn.RNN(I, H, 2, bidirectional=True, dtype=torch.float64), backend=backend)
    x = torch.randn(T, B, I, dtype=torch.float64)
    values = {name: value.clone() for name, value in fast.state_dict().items()}
    with torch.set_grad_enabled(grad):
        before = fast(x)[0].detach()
        for name in NAMES:
            values[name] = values[name] * 0.5 + 0.25
            change(fast, name, values[name].clone())
            y, h = fast(x)
            torch.testing.assert_close((y, h), fresh(values)(x), rtol=1e-10, atol=1e-12)
            assert not torch.allclose(y, before)
            before = y.detach()
            del y, h  # their graph holds on to the weights


def test_an_optimizer_step_is_seen(backend):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2, dtype=torch.float64)
    fast = rnnjit.compile(rnn, backend=backend)
    optimizer = torch.optim.Adam(fast.parameters(), lr=0.1)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        y, _ = fast(x)
        torch.testing.assert_close(y, rnn(x)[0], rtol=1e-10, atol=1e-12)
        y.square().sum().backward()
        optimizer.step()


def test_functional_call_uses_its_own_and_leaves_the_modules(backend):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, dtype=torch.float64)
    fast = rnnjit.compile(rnn, backend=backend)
    x = torch.randn(T, B, I, dtype=torch.float64)
    own = {name: 0.5 * p.detach() for name, p in rnn.named_parameters()}
    for _ in range(2):
        found = torch.func.functional_call(fast, own, (x,))
        expected = torch.func.functional_call(rnn, own, (x,))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(fast(x), rnn(x), rtol=1e-10, atol=1e-12)


def test_a_weight_changed_through_the_original_is_seen(backend):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, dtype=torch.float64)
    fast = rnnjit.compile(rnn, backend=backend)
    x = torch.randn(T, B, I, dtype=torch.float64)
    fast(x)
    rnn.reset_parameters()
    torch.testing.assert_close(fast(x), rnn(x), rtol=1e-10, atol=1e-12)
