"""Protects second gradients of layers on cuDNN, with a stand-in for its node, which has none."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit import reference

MODULES = {"rnn_tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class CudnnRnn(torch.autograd.Function):
    """An operator of torch's as cuDNN has it: differentiable once; the weights before the states.

    Its node is called CudnnRnnBackward; cuDNN's own is CudnnRnnBackward0.
    """

    @staticmethod
    def forward(ctx, run, x, *rest):
        ctx.run = run
        ctx.save_for_backward(x, *rest)
        return run(x, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        inputs = [each.detach().requires_grad_() for each in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.run(*inputs)
        found = torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
        CudnnRnn.runs += 1
        return None, *found


def _are_sizes(value):
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def fake(operator):
    """An operator that runs as `CudnnRnn`."""

    def run(x, *given):
        # Packed calls have the batch sizes before the states.
        packed = given[:1] if _are_sizes(given[0]) else ()
        state, weights, *options = given[len(packed) :]
        several, count = not isinstance(state, torch.Tensor), len(weights)

        def inner(x, *rest):
            again = rest[count:] if several else rest[count]
            return operator(x, *packed, again, rest[:count], *options)

        return CudnnRnn.apply(inner, x, *weights, *(state if several else [state]))

    return run


@pytest.fixture
def on_cudnn(monkeypatch):
    """Eager's operators as on a GPU."""
    CudnnRnn.runs = 0
    operators = {cell: fake(each) for cell, each in reference._OPERATORS.items()}
    monkeypatch.setattr(reference, "_OPERATORS", operators)
    monkeypatch.setattr(reference, "_may_be_cudnn", lambda x: True)


def gradients(module, x, packed):
    """First and second gradients, of everything that there is."""
    given = x.detach().requires_grad_()
    lengths = torch.tensor([4, 2, 1])
    inputs = given
    if packed:
        inputs = pack_padded_sequence(given, lengths, batch_first=module.batch_first)
    shape = (module.num_layers * (1 + module.bidirectional), 3, module.hidden_size)
    generator = torch.Generator().manual_seed(2)
    hx = [torch.randn(shape, generator=generator).to(x) for _ in range(2)]
    hx = [state.requires_grad_() for state in hx[: 1 + isinstance(module, nn.LSTM)]]
    y, states = module(inputs, tuple(hx) if len(hx) > 1 else hx[0])
    ends = states if isinstance(states, tuple) else (states,)
    loss = (y.data if packed else y).square().sum() + sum(end.sin().sum() for end in ends)
    leaves = (given, *hx, *module.parameters())
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves)
    return [each.detach() for each in (*first, *second)]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch_first"])
@pytest.mark.parametrize("name", MODULES)
def test_they_are_those_of_torch_s_own_operators(name, batch_first, options, packed, on_cudnn):
    torch.manual_seed(0)
    eager = MODULES[name](3, 5, batch_first=batch_first, dtype=torch.float64, **options)
    module = rnnjit.compile(eager, backend="eager")
    shape = (3, 4, 3) if batch_first else (4, 3, 3)
    x = torch.randn(shape, dtype=torch.float64)
    found, expected = gradients(module, x, packed), gradients(eager, x, packed)
    assert CudnnRnn.runs
    torch.testing.assert_close(found, expected)


def test_without_the_function_there_are_none(on_cudnn, monkeypatch):
    monkeypatch.setattr(reference, "_may_be_cudnn", lambda x: False)
    module = rnnjit.compile(nn.GRU(3, 5), backend="eager")
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        gradients(module, torch.randn(4, 3, 3), packed=False)


def test_first_gradients_alone_run_on_cudnn(on_cudnn, monkeypatch):
    monkeypatch.setattr(reference, "layer_forward", None)
    eager = nn.LSTM(3, 5)
    module, x = rnnjit.compile(eager, backend="eager"), torch.randn(4, 3, 3)
    found = torch.autograd.grad(module(x)[0].sum(), tuple(module.parameters()))
    assert CudnnRnn.runs == 1
    expected = torch.autograd.grad(eager(x)[0].sum(), tuple(eager.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("frozen", ["x", "weights", "some"])
def test_what_needs_no_gradient_gets_none(frozen, on_cudnn):
    torch.manual_seed(0)
    eager = nn.LSTM(3, 5, dtype=torch.float64)
    module = rnnjit.compile(eager, backend="eager")
    for index, weight in enumerate(module.parameters()):
        weight.requires_grad_(frozen == "x" or (frozen == "some" and index % 2 == 0))
    found = []
    for model in (module, eager):
        x = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_(frozen != "x")
        leaves = [each for each in (x, *model.parameters()) if each.requires_grad]
        first = torch.autograd.grad(model(x)[0].square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    torch.testing.assert_close(*found)
