"""Protects in-place changes between forward and backward pass: allowed and refused as in eager."""

import pytest
import torch
from on_cpu import ON_CPU
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit.testing import RecomputeBackend

T, B, I, H = 40, 3, 4, 6
#: What may be changed, by the name of the parameter or argument; and what is frozen.
CHANGES = [
    ("bias_ih_l0", ()),
    ("bias_hh_l0", ()),
    ("bias_hh_l1", ()),
    ("x", ("weight_ih_l0",)),
    ("hx", ("weight_hh_l0", "weight_hh_l1")),
    ("weight_ih_l0", ()),  # read for the gradient of x alone, which is not needed
    ("weight_ih_l1", ()),
    ("weight_hh_l0", ()),
    ("x", ()),
    ("hx", ()),
]


def outcome(module, changed, frozen, needs_x, packed):
    """The gradients after a change between the passes, or whether the error is torch's for it."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, I, generator=generator)
    hx = torch.randn(2, B, H, generator=generator)
    x.requires_grad_(needs_x)
    tensors = {**dict(module.named_parameters()), "x": x, "hx": hx}
    for name in frozen:
        tensors[name].requires_grad_(False)
    # Of the same data, so that the change is one of a tensor that is no leaf.
    given = x * 1 if needs_x else x
    tensors["x"] = given
    if packed:
        lengths = (T, 9, 2)
        given = pack_sequence([given[:n, b] for b, n in enumerate(lengths)])
        tensors["x"] = given.data
    y, h_n = module(given, hx)
    loss = (y.data.square().sum() if packed else y.square().sum()) + h_n.sum()
    kept = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        tensors[changed].add_(0.5)
    leaves = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    try:
        return torch.autograd.grad(loss, leaves)
    except RuntimeError as error:
        return "inplace operation" in str(error)
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(kept[name]).requires_grad_()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize(("changed", "frozen"), CHANGES)
@pytest.mark.parametrize("backend", ON_CPU)
def test_what_eager_allows_is_allowed(backend, changed, frozen, needs_x, packed):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, num_layers=2)
    fast = rnnjit.compile(rnn, backend=backend)
    expected = outcome(rnn, changed, frozen, needs_x, packed)
    got = outcome(fast, changed, frozen, needs_x, packed)
    if expected is True:
        assert got is True
        return
    for grad, want in zip(got, expected, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_a_single_step_reads_no_recurrent_weights():
    for module in (nn.RNN(I, H), rnnjit.compile(nn.RNN(I, H))):
        y, _ = module(torch.ones(1, B, I))
        with torch.no_grad():
            module.weight_hh_l0.add_(1)
        y.sum().backward()


@pytest.mark.parametrize("change", [False, True])
def test_second_derivatives_need_the_values(change):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    fast = rnnjit.compile(rnn, backend="numba")
    x = torch.randn(5, B, I, requires_grad=True)

    def second(module):
        y, _ = module(x)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(second(fast), second(rnn))
    if change:
        y, _ = fast(x)
        with torch.no_grad():
            fast.bias_ih_l0.add_(1)
        with pytest.raises(RuntimeError, match=r"an input of a layer .*modified by an inplace"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("pack", [torch.clone, lambda t: t])
def test_second_derivatives_where_hooks_give_back_copies(pack):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    x, found = torch.randn(5, B, I, requires_grad=True), []
    for module in (rnn, rnnjit.compile(rnn, backend="numba")):
        with torch.autograd.graph.saved_tensors_hooks(pack, torch.clone):
            y, _ = module(x)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_a_backend_that_does_not_say_what_it_reads_gets_all_as_they_were():
    fast = rnnjit.compile(nn.RNN(I, H), backend=RecomputeBackend())
    y, _ = fast(torch.ones(5, B, I))
    with torch.no_grad():
        fast.bias_ih_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_saved_is_what_the_gradients_need():
    def saved(module, *args):
        found = []
        with torch.autograd.graph.saved_tensors_hooks(found.append, lambda held: held):
            module(*args)
        return sum(tensor.numel() for tensor in found if tensor is not None)

    fast = rnnjit.compile(nn.RNN(64, H), backend="numba")
    x = torch.ones(5, B, 64)
    with_x = saved(fast, x)
    fast.weight_ih_l0.requires_grad_(False)
    assert saved(fast, x) == with_x - x.numel()


def other_data(module, x):
    module.weight_hh_l0.data = torch.ones_like(module.weight_hh_l0)


def other_input(module, x):
    x.data = torch.zeros(1, 1, I)


#: Changes of what a tensor refers to, which autograd does not notice.
REPLACED = {
    "weight": other_data,
    "input": other_input,
    "half": lambda module, x: module.half(),
    "double": lambda module, x: module.double(),
    "there and back": lambda module, x: module.bfloat16().float(),
    "vector": lambda module, x: nn.utils.vector_to_parameters(
        torch.ones(sum(p.numel() for p in module.parameters())), module.parameters()
    ),
}


@pytest.mark.parametrize("how", REPLACED)
@pytest.mark.parametrize("backend", ["numba", "tvm"])
def test_gradients_are_those_of_the_values_that_the_forward_pass_had(backend, how):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    start = torch.randn(T, B, I)

    def gradients(compiled):
        module = nn.RNN(I, H)
        module.load_state_dict(rnn.state_dict())
        module = rnnjit.compile(module, backend=backend) if compiled else module
        x = start.clone().requires_grad_()
        y, _ = module(x)
        REPLACED[how](module, x)
        if how == "input":
            return torch.autograd.grad(y.sum(), [*module.parameters()])
        return torch.autograd.grad(y.sum(), x)

    for got, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_other_data_of_what_is_no_leaf_is_an_error():
    fast = rnnjit.compile(nn.RNN(I, H), backend="numba")
    x = torch.ones(T, B, I, requires_grad=True) * 1
    y, _ = fast(x)
    x.data = torch.zeros(1, 1, I)
    with pytest.raises(RuntimeError, match="given other data"):
        y.sum().backward()
    y, _ = fast(torch.ones(T, B, I))
    fast.weight_hh_l0.data = torch.zeros(H, H)
    with pytest.raises(RuntimeError, match="given other data"):
        torch.autograd.grad(y.sum(), [*fast.parameters()], create_graph=True)


UNPACKED = {
    "fewer rows": lambda t: t[:1],
    "nothing": lambda t: t[:0],
    "no memory": lambda t: t.to("meta"),
    "another dtype": lambda t: t.double(),
}


@pytest.mark.parametrize("how", UNPACKED)
@pytest.mark.parametrize("backend", ["numba", "tvm"])
def test_hooks_that_give_back_something_else_are_an_error(backend, how):
    fast = rnnjit.compile(nn.RNN(I, H), backend=backend)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, UNPACKED[how]):
        y, _ = fast(torch.ones(T, B, I))
    with pytest.raises(RuntimeError, match="a hook for saved tensors gave back"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["numba", "tvm"])
def test_hooks_may_give_back_other_strides(backend):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    fast, x = rnnjit.compile(rnn, backend=backend), torch.randn(T, B, I)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t.detach().mT.contiguous().mT if t.dim() > 1 else t
    ):
        y, _ = fast(x)
    got = torch.autograd.grad(y.sum(), [*fast.parameters()])
    expected = torch.autograd.grad(rnn(x)[0].sum(), [*rnn.parameters()])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch itself uses it
def test_a_gradient_with_a_tangent_keeps_it():
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, dtype=torch.float64)
    found = []
    for module in (rnn, rnnjit.compile(rnn)):
        x = torch.ones(5, B, I, dtype=torch.float64, requires_grad=True)
        y, _ = module(x)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(torch.ones_like(y), 2 * torch.ones_like(y))
            (grad,) = torch.autograd.grad(y, x, dual)
            found.append(torch.autograd.forward_ad.unpack_dual(grad).tangent)
    torch.testing.assert_close(*found)
