"""Protects torch's transforms: torch's own operators compute the layer, for any named backend."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.testing import RecomputeBackend

BACKENDS = [RecomputeBackend(), *(b for b in rnnjit.backends().values() if not b.missing())]
# Forward-mode AD makes torch import decompositions of its own that warn.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
T, B, I, H = 4, 3, 2, 5
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class NeverCalled(RecomputeBackend):
    def forward(self, *args):
        raise AssertionError("the backend was called")


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


def pair(backend, **config):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2, dtype=torch.float64, **config)
    return rnn, rnnjit.compile(rnn, backend=backend), torch.randn(T, B, I, dtype=torch.float64)


def test_grad_over_functional_call(backend):
    rnn, fast, x = pair(backend)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(values):
        y, h = functional_call(fast, values, (x,))
        return (y**2).sum() + h.sum()

    y, h = rnn(x)
    expected = torch.autograd.grad((y**2).sum() + h.sum(), rnn.parameters())
    found = grad(loss)(parameters)
    torch.testing.assert_close(list(found.values()), list(expected), **CLOSE)


def test_vmap_over_inputs_equals_a_loop(backend):
    rnn, fast, _ = pair(backend, bidirectional=True)
    x = torch.randn(6, T, I, dtype=torch.float64)
    y, h = vmap(fast)(x)
    for index in range(6):
        torch.testing.assert_close((y[index], h[index]), rnn(x[index]), **CLOSE)


def test_per_sample_gradients(backend):
    rnn, fast, x = pair(backend)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(values, sample):
        return functional_call(fast, values, (sample,))[0].square().sum()

    found = vmap(grad(loss), (None, 1))(parameters, x)
    for index in range(B):
        expected = torch.autograd.grad(rnn(x[:, index])[0].square().sum(), rnn.parameters())
        torch.testing.assert_close([g[index] for g in found.values()], list(expected), **CLOSE)


def test_an_ensemble_of_stacked_parameters(backend):
    rnn, fast, x = pair(backend)
    other = copy.deepcopy(rnn)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    stacked, _ = torch.func.stack_module_state([rnn, other])
    y, _ = vmap(lambda values: functional_call(fast, values, (x,)))(stacked)
    torch.testing.assert_close((y[0], y[1]), (rnn(x)[0], other(x)[0]), **CLOSE)


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobians(backend, transform):
    rnn, fast, x = pair(backend)
    expected = torch.autograd.functional.jacobian(lambda v: rnn(v)[1], x)
    torch.testing.assert_close(transform(lambda v: fast(v)[1])(x), expected, **CLOSE)


def directional(module, x, dx):
    step = 1e-6
    with torch.no_grad():
        return (module(x + step * dx)[0] - module(x - step * dx)[0]) / (2 * step)


def test_jvp_and_forward_mode_against_finite_differences(backend):
    rnn, fast, x = pair(backend)
    dx = torch.randn_like(x)
    expected = directional(rnn, x, dx)
    _, (tangent, _) = jvp(fast, (x,), (dx,))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        y, _ = fast(forward_ad.make_dual(x, dx))
        dual = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(dual, tangent, **CLOSE)


def test_forward_mode_over_weights_and_packed_input():
    rnn, fast, x = pair(NeverCalled())
    given = pack_padded_sequence(x, [4, 2, 1])
    tangents = {name: torch.randn_like(p) for name, p in rnn.named_parameters()}
    values = {name: p.detach() for name, p in rnn.named_parameters()}

    def run(module):
        return lambda p: functional_call(module, p, (given,))[0].data

    _, tangent = jvp(run(fast), (values,), (tangents,))
    step = 1e-6
    ahead, behind = (
        run(rnn)({n: p + sign * step * tangents[n] for n, p in values.items()}) for sign in (1, -1)
    )
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", ["dense", "packed"])
def test_autocast_behaves_as_for_eager(dtype, given):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2, bidirectional=True)
    fast = rnnjit.compile(rnn, backend=NeverCalled())
    x = torch.randn(T, B, I)
    x = x if given == "dense" else pack_padded_sequence(x, [4, 2, 1])
    results = []
    for module in (rnn, fast):
        with torch.autocast("cpu", dtype=dtype):
            y, h = module(x)
        data = y if given == "dense" else y.data
        results.append((data, h, *torch.autograd.grad(data.float().sum(), module.parameters())))
    for got, expected in zip(results[1], results[0], strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def test_autocast_takes_inputs_of_its_own_dtype_as_eager_does():
    rnn = nn.RNN(I, H)
    fast = rnnjit.compile(rnn, backend=NeverCalled())
    x, h0 = torch.randn(T, B, I).bfloat16(), torch.randn(1, B, H).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for args in ((x,), (x, h0)):
            try:
                expected = rnn(*args)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    fast(*args)
            else:
                torch.testing.assert_close(fast(*args), expected)


def test_autocast_of_another_device_is_no_matter():
    _, fast, x = pair("eager")
    fast.backend = RecomputeBackend()
    torch.set_autocast_enabled("cuda", True)
    try:
        report = rnnjit.explain(fast, x).calls[0]
        y, _ = fast(x)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert report.chosen == "recompute"
    assert torch.equal(y, fast(x)[0])


class Tagged(torch.Tensor):
    """A subclass with torch's default behaviour."""


def test_tensor_subclasses_stay_what_they_are():
    rnn, fast, x = pair(NeverCalled())
    y, h = fast(x.as_subclass(Tagged))
    expected = rnn(x.as_subclass(Tagged))
    assert type(y) is type(expected[0]) is Tagged
    assert type(h) is type(expected[1]) is Tagged
    torch.testing.assert_close(y.as_subclass(torch.Tensor), rnn(x)[0], **CLOSE)


def test_fake_tensors_get_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fast = rnnjit.compile(nn.RNN(I, H, 2, bidirectional=True), backend=NeverCalled())
        y, h = fast(torch.randn(T, B, I))
    assert (y.shape, h.shape) == ((T, B, 2 * H), (4, B, H))


def test_meta_tensors_get_shapes():
    fast = rnnjit.compile(nn.RNN(I, H, 2, bidirectional=True, device="meta"))
    y, h = fast(torch.randn(T, B, I, device="meta"))
    assert (y.shape, h.shape, y.device.type) == ((T, B, 2 * H), (4, B, H), "meta")


def test_a_torch_function_mode_sees_no_difference_in_values():
    from torch.overrides import TorchFunctionMode

    class Passing(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    rnn, fast, x = pair("eager")
    with Passing():
        torch.testing.assert_close(fast(x), rnn(x), **CLOSE)


def test_dispatch_modes_see_what_they_count_and_trace(backend):
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    rnn, fast, x = pair(backend)
    with torch.no_grad():
        fast(x)  # leaves a route
    counts = []
    for module in (rnn, fast):
        with FlopCounterMode(display=False) as counter:
            module(x)[0].sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == counts[0] > 0
    with torch.no_grad():
        graph = make_fx(lambda v: fast(v)[0])(x)
        torch.testing.assert_close(graph(2 * x), rnn(2 * x)[0], **CLOSE)


def test_explain_names_a_dispatch_mode():
    from torch.utils.flop_counter import FlopCounterMode

    _, fast, x = pair(NeverCalled())
    with FlopCounterMode(display=False):
        report = rnnjit.explain(fast, x).calls[0]
    assert report.chosen == "torch"
    assert "a TorchDispatchMode is active" in report.note
