"""Protects that no two gradients share memory: what is written into one changes no other."""

import pytest
import torch
from kinds import called, first_states, layer, taken

import rnnjit

SETTINGS = {
    "one direction": {},
    "two directions": {"bidirectional": True},
    "two layers": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bidirectional": True, "bias": False},
}


def gradients(which, settings, steps=20, frozen=(), **how):
    torch.manual_seed(0)
    rnn = layer(which.kind, 5, 7, **settings)
    for name in frozen:
        rnn.get_parameter(name).requires_grad_(False)
    x = torch.randn(steps, 3, 5, requires_grad=True)
    hx = tuple(state.requires_grad_() for state in first_states(rnn, 3))
    leaves = {"x": x} | dict(zip(("h0", "c0"), hx, strict=False))
    leaves |= {name: p for name, p in rnn.named_parameters() if p.requires_grad}
    y, last = called(rnnjit.compile(rnn, backend=which.backend), x, hx)
    loss = y.square().sum() + sum(state.sum() for state in last)
    found = torch.autograd.grad(loss, list(leaves.values()), **how)
    return dict(zip(leaves, found, strict=True))


def assert_apart(grads):
    owner = {}
    for name, grad in grads.items():
        storage = grad.untyped_storage()
        other = owner.setdefault(storage.data_ptr(), name)
        assert other == name, f"the gradients of {other} and {name} share memory"
        assert storage.nbytes() == grad.numel() * grad.itemsize, f"{name}'s is part of a larger one"


KINDS = ("tanh", "LSTM", "projected", "GRU")
WITH_BACKWARD = ["numba", "tvm", "inductor"]
each_of_all = pytest.mark.parametrize("which", taken([*WITH_BACKWARD, "eager"], KINDS), ids=str)
each = pytest.mark.parametrize("which", taken(WITH_BACKWARD, KINDS), ids=str)


@each_of_all
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_gradient_has_memory_of_its_own(which, settings):
    assert_apart(gradients(which, settings))


@each
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "bias_ih_l0_reverse", "bias_hh_l0"])
def test_they_do_where_one_weight_is_frozen(which, frozen):
    settings = SETTINGS["two directions"]
    grads = gradients(which, settings, frozen=[frozen])
    assert_apart(grads)
    expected = gradients(which._replace(backend="eager"), settings, frozen=[frozen])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5)


@each
def test_scaling_a_gradient_in_place_leaves_the_others_alone(which):
    grads = gradients(which, SETTINGS["two layers"])
    before = {name: grad.clone() for name, grad in grads.items()}
    for name, grad in grads.items():
        grad.mul_(2)
        before[name] *= 2
        for other in grads:
            assert torch.equal(grads[other], before[other]), (name, other)


@pytest.mark.parametrize("which", taken(["numba"], KINDS), ids=str)
def test_those_of_the_reference_do_too(which):
    """A backward pass that is itself differentiated goes through the reference."""
    assert_apart(gradients(which, SETTINGS["two layers"], create_graph=True))
