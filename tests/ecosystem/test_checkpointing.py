"""Protects activation checkpointing in every form: it gives the gradients of a run without it."""

import copy
from functools import partial

import pytest
import torch
from eager_pair import CLOSE
from layer_kinds import kinds_on_few, width
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import rnnjit

T, B, I, H = 6, 4, 3, 4


class First(nn.Module):
    """y alone, for models that are a sequence of modules."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.fixture(params=kinds_on_few())
def stacked(request):
    make, backend = request.param
    torch.manual_seed(0)
    layers = [First(make(I, H))]
    layers += [First(make(width(layers[0].rnn), H)) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Dropout(0.2)).double()
    return model, rnnjit.compile(copy.deepcopy(model), backend=backend)


def example():
    return torch.arange(T * B * I).double().view(T, B, I).sin().requires_grad_()


def gradients_of(model, run):
    x = example()
    model.zero_grad()
    torch.manual_seed(0)
    run(model, x).square().sum().backward()
    return x.grad, *(p.grad.clone() for p in model.parameters())


def only_matrix_products(context, op, *args, **kwargs):
    keep = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


RECOMPUTING = {
    "whole": lambda m, x: checkpoint(m, x, use_reentrant=False),
    "reentrant": lambda m, x: checkpoint(m, x, use_reentrant=True),
    "segments": lambda m, x: checkpoint_sequential(m, 2, x, use_reentrant=False),
    "nested": lambda m, x: checkpoint(
        lambda v: checkpoint(m, v, use_reentrant=False), x, use_reentrant=False
    ),
    "selective": lambda m, x: checkpoint(
        m,
        x,
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, only_matrix_products),
    ),
}


@pytest.mark.parametrize("run", RECOMPUTING.values(), ids=RECOMPUTING)
def test_activation_checkpointing(stacked, run):
    eager, fast = stacked
    expected = gradients_of(eager, lambda model, x: model(x))
    torch.testing.assert_close(gradients_of(fast, run), expected, **CLOSE)


def test_checkpointing_needs_less_while_it_waits(stacked):
    """Of four layers nothing but the input is kept."""
    _, fast = stacked

    def kept(run):
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            y = run(fast, example())
        weights = {id(p) for p in fast.parameters()}
        size = sum(t.numel() for t in seen if id(t) not in weights)
        del y
        return size

    assert kept(RECOMPUTING["whole"]) < kept(lambda m, x: m(x)) / 2
