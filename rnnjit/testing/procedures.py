"""What the checks do with a module, the same for the compiled one and for eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import dlpack

from rnnjit.backend import States
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.testing.calls import Call, Layer, Values, forward, gradients
from rnnjit.testing.poison import poisoned

#: A function of a `Layer` and a call; some take modules alone.
Procedure = Callable[[Any, Call], Values]


def without_gradients(module: Layer, call: Call) -> Values:
    """The parts of the result of a call that is not recorded."""
    with torch.no_grad(), poisoned():
        return forward(module, call)[2]


def with_gradients(module: Layer, call: Call) -> Values:
    """The parts of the result, and the gradients."""
    with poisoned():
        y, h_n, parts = forward(module, call)
        return parts | gradients(call, y, h_n)


def interleaved(module: Layer, call: Call) -> Values:
    """The parts of the result and the gradients, with a second call between the two passes."""
    between = replace(call, x=call.x.detach().neg().requires_grad_(call.x.requires_grad))
    with poisoned():
        y, h_n, parts = forward(module, call)
        forward(module, between)
        return parts | gradients(call, y, h_n)


def overwritten(module: Layer, call: Call) -> Values:
    """The gradients after the caller changed the outputs in place, as an in-place ReLU does.

    To add a number changes no gradient: they are those of `with_gradients`.
    """
    with poisoned():
        y, h_n, _ = forward(module, call)
        y.add_(1)
        for state in h_n:
            state.add_(2)
        return gradients(call, y, h_n)


def double_backward(module: Layer, call: Call) -> Values:
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


def all_states(module: Layer, call: Call) -> Values:
    """Every state but the first after every step, `[T, B, D*H]`, and the gradients through them.

    A compiled layer returns them; torch's own is called for one step after the other. The case has
    one layer and one direction, and is dense, batched and time-major.
    """
    leaves = call.leaves()
    with poisoned():
        if isinstance(module, CompiledBase):
            states = module(*call.arguments(), return_states=True)[2][0][1:]
        else:
            states = _step_by_step(module, call)
        names = (f"every {name}" for name in call.case.states[1:])
        found: Values = dict(zip(names, states, strict=True))
        if not leaves:
            return found
        weights = [torch.ones_like(state).cumsum(0).sin() for state in states]
        grads = torch.autograd.grad(states, list(leaves.values()), weights, allow_unused=True)
    return found | {f"the gradient of {k}": grad for k, grad in zip(leaves, grads, strict=True)}


def _step_by_step(module: Layer, call: Call) -> States:
    """What torch's own layer returns as its last states but the first, for each step alone."""
    x, hx = call.arguments()
    steps = []
    for frame in torch.split(cast("Tensor", x), 1):
        _, hx = module(frame, hx)
        steps.append(hx[1:])
    return tuple(map(torch.cat, zip(*steps, strict=True)))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """All floating-point weights: the scales of a quantized module are buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _through_data(module: nn.Module) -> None:
    for weight in _weights(module):
        weight.data.mul_(-0.9)


def _through_another_view(module: nn.Module) -> None:
    for weight in _weights(module):
        if weight.is_cpu and weight.dtype is not torch.bfloat16:  # numpy lacks it
            view = weight.detach().numpy()
            view *= -0.8
        else:
            dlpack.from_dlpack(weight.detach()).mul_(-0.8)


def _through_load_state_dict(module: nn.Module) -> None:
    module.load_state_dict({name: -tensor for name, tensor in module.state_dict().items()})


def _through_an_operation(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in _weights(module):
            weight.mul_(0.7)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "parameter.data": _through_data,
    "a view of another library": _through_another_view,
    "load_state_dict": _through_load_state_dict,
    "an in-place operation": _through_an_operation,
}
