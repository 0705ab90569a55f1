"""What the checks do with a module, the same for the compiled one and for eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.utils import dlpack

from rnnjit.testing.calls import Call, Values, forward, gradients
from rnnjit.testing.poison import poisoned

Procedure = Callable[[nn.Module, Call], Values]


def without_gradients(module: nn.Module, call: Call) -> Values:
    """The parts of the result of a call that is not recorded."""
    with torch.no_grad(), poisoned():
        return forward(module, call)[2]


def with_gradients(module: nn.Module, call: Call) -> Values:
    """The parts of the result, and the gradients."""
    with poisoned():
        y, h_n, parts = forward(module, call)
        return parts | gradients(call, y, h_n)


def interleaved(module: nn.Module, call: Call) -> Values:
    """The parts of the result and the gradients, with a second call between the two passes."""
    between = replace(call, x=call.x.detach().neg().requires_grad_(call.x.requires_grad))
    with poisoned():
        y, h_n, parts = forward(module, call)
        forward(module, between)
        return parts | gradients(call, y, h_n)


def overwritten(module: nn.Module, call: Call) -> Values:
    """The gradients after the caller changed the outputs in place, as an in-place ReLU does.

    To add a number changes no gradient: they are those of `with_gradients`.
    """
    with poisoned():
        y, h_n, _ = forward(module, call)
        y.add_(1)
        for state in h_n:
            state.add_(2)
        return gradients(call, y, h_n)


def double_backward(module: nn.Module, call: Call) -> Values:
    """The gradients, and those of a penalty on them."""
    leaves = call.leaves()
    with poisoned():
        y, h_n, _ = forward(module, call)
        first = gradients(call, y, h_n, create_graph=True)
        squares = [grad.square().sum() for grad in first.values() if grad is not None]
        penalty = torch.stack(squares).sum()
        second = torch.autograd.grad(penalty, list(leaves.values()), allow_unused=True)
    named = zip(leaves, second, strict=True)
    return first | {f"the second gradient of {name}": grad for name, grad in named}


def _through_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(-0.9)


def _through_another_view(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.is_cpu:
            view = parameter.detach().numpy()
            view *= -0.8
        else:
            dlpack.from_dlpack(parameter.detach()).mul_(-0.8)


def _through_load_state_dict(module: nn.Module) -> None:
    module.load_state_dict({name: -tensor for name, tensor in module.state_dict().items()})


def _through_an_operation(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.7)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "parameter.data": _through_data,
    "a view of another library": _through_another_view,
    "load_state_dict": _through_load_state_dict,
    "an in-place operation": _through_an_operation,
}
