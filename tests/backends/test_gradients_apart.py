"""Protects that no two gradients share memory: what is written into one changes no other."""

import pytest
import torch
from torch import nn

import rnnjit

SETTINGS = {
    "one direction": {},
    "two directions": {"bidirectional": True},
    "two layers": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bidirectional": True, "bias": False},
}


def gradients(backend, settings, steps=20, frozen=(), **how):
    torch.manual_seed(0)
    rnn = nn.RNN(5, 7, **settings)
    for name in frozen:
        rnn.get_parameter(name).requires_grad_(False)
    layers = rnn.num_layers * (1 + rnn.bidirectional)
    x = torch.randn(steps, 3, 5, requires_grad=True)
    h0 = torch.randn(layers, 3, 7, requires_grad=True)
    leaves = {"x": x, "h0": h0}
    leaves |= {name: p for name, p in rnn.named_parameters() if p.requires_grad}
    y, h_n = rnnjit.compile(rnn, backend=backend)(x, h0)
    found = torch.autograd.grad(y.square().sum() + h_n.sum(), list(leaves.values()), **how)
    return dict(zip(leaves, found, strict=True))


def assert_apart(grads):
    owner = {}
    for name, grad in grads.items():
        storage = grad.untyped_storage()
        other = owner.setdefault(storage.data_ptr(), name)
        assert other == name, f"the gradients of {other} and {name} share memory"
        assert storage.nbytes() == grad.numel() * grad.itemsize, f"{name}'s is part of a larger one"


@pytest.mark.parametrize("backend", ["numba", "tvm", "inductor", "eager"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_gradient_has_memory_of_its_own(backend, settings):
    assert_apart(gradients(backend, settings))


@pytest.mark.parametrize("backend", ["numba", "tvm", "inductor"])
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "bias_ih_l0_reverse", "bias_hh_l0"])
def test_they_do_where_one_weight_is_frozen(backend, frozen):
    settings = SETTINGS["two directions"]
    grads = gradients(backend, settings, frozen=[frozen])
    assert_apart(grads)
    expected = gradients("eager", settings, frozen=[frozen])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["numba", "tvm", "inductor"])
def test_scaling_a_gradient_in_place_leaves_the_others_alone(backend):
    grads = gradients(backend, SETTINGS["two layers"])
    before = {name: grad.clone() for name, grad in grads.items()}
    for name, grad in grads.items():
        grad.mul_(2)
        before[name] *= 2
        for other in grads:
            assert torch.equal(grads[other], before[other]), (name, other)


def test_those_of_the_reference_do_too():
    """A backward pass that is itself differentiated goes through the reference."""
    assert_apart(gradients("numba", SETTINGS["two layers"], create_graph=True))
