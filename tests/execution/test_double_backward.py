"""Protects derivatives of derivatives, which the reference computes: equal to eager's."""

import pytest
import torch
from eager_pair import BACKENDS, agree, inputs, pair, weigh
from torch.autograd.functional import hessian, hvp, jacobian
from torch.nn.utils.rnn import pack_padded_sequence


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


def test_double_backward_of_a_gradient_penalty(backend):
    rnn, fast = pair(backend, num_layers=2, bidirectional=True)

    def gradients(module):
        x, h0 = inputs(4)
        (grad,) = torch.autograd.grad(weigh(*module(x, h0)), x, create_graph=True)
        penalty = ((grad.flatten(1).norm(dim=1) - 1) ** 2).sum()
        return torch.autograd.grad(penalty, (x, h0, *module.parameters()))

    agree(gradients, rnn, fast)


def test_double_backward_of_packed_input(backend):
    rnn, fast = pair(backend)

    def gradients(module):
        x, _ = inputs()
        y, h = module(pack_padded_sequence(x, [4, 3, 1]))
        (grad,) = torch.autograd.grad(weigh(y, h), x, create_graph=True)
        return torch.autograd.grad((grad**3).sum(), (x, *module.parameters()))

    agree(gradients, rnn, fast)


def test_gradgradcheck(backend):
    _, fast = pair(backend)
    x, h0 = inputs()
    assert torch.autograd.gradgradcheck(lambda *a: fast(*a), (x[:2, :2], h0[:, :2].contiguous()))


def test_a_weight_that_depends_on_the_input(backend):
    """A hypernetwork: each gradient is its direct share only, at first and second order."""
    rnn, fast = pair(backend)
    x, h0 = inputs()

    def gradients(module):
        own = {"weight_hh_l0": torch.tanh(x.sum()) * module.weight_hh_l0, "bias_ih_l0": h0[0, 0]}
        y, h = torch.func.functional_call(module, own, (x, h0))
        first = torch.autograd.grad(weigh(y, h), (x, h0), create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), (x, h0))
        return *first, *second

    agree(gradients, rnn, fast)


def test_jacobian_hessian_and_hessian_vector_products(backend):
    rnn, fast = pair(backend)
    x = inputs()[0].detach()[:2, :1]

    def derivatives(module):
        def loss(v):
            return weigh(*module(v))

        return (
            jacobian(lambda v: module(v)[0], x),
            jacobian(lambda v: module(v)[0], x, vectorize=True),
            hessian(loss, x),
            hessian(loss, x, vectorize=True),
            hvp(loss, x, torch.ones_like(x))[1],
        )

    agree(derivatives, rnn, fast)
