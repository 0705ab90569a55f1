"""What one call does, by mode: each function makes a module and a call of the kit ready."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

import rnnjit
from rnnjit.module import CompiledRNN
from rnnjit.testing.calls import Call, Values

_RATE = 0.01


class Ready(NamedTuple):
    """A call that can be timed.

    Attributes:
        run: does it once.
        values: what it gives, by name; it leaves everything as it was.
        context: what `run` is to be called within, entered once for many calls.
    """

    run: Callable[[], object]
    values: Callable[[], Values]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


#: Makes a call ready. The kit gives it an eager module in float64 to know the truth.
Prepare = Callable[[nn.Module, Call], Ready]


def forward(module: nn.Module, call: Call) -> Ready:
    """The forward pass, with nothing kept for a backward pass."""
    x, h0 = _arguments(call)

    def values() -> Values:
        with torch.no_grad():
            output, h_n = module(x, h0)
        return {"y": _rows(output), "h_n": h_n}

    return Ready(lambda: module(x, h0), values, torch.no_grad)


def backward(module: nn.Module, call: Call) -> Ready:
    """The backward pass alone, to x, h0 and every weight: one forward pass, whose graph is kept."""
    x, h0 = _arguments(call)
    leaves = _leaves(module, x, h0)
    output, h_n = module(x, h0)
    outputs, grads = (_rows(output), h_n), (call.grad_y, call.grad_h_n)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, tuple(leaves.values()), grads, retain_graph=True)

    def values() -> Values:
        return {f"the gradient of {k}": v for k, v in zip(leaves, run(), strict=True)}

    return Ready(run, values)


def training_step(module: nn.Module, call: Call) -> Ready:
    """Forward pass, loss, backward pass to x, h0 and every weight, and a step of plain SGD."""
    x, h0 = _arguments(call)
    leaves = _leaves(module, x, h0)
    weights = dict(module.named_parameters())
    optimizer = torch.optim.SGD(weights.values(), lr=_RATE)

    def run() -> None:
        for leaf in leaves.values():
            leaf.grad = None
        output, h_n = module(x, h0)
        loss = F.mse_loss(_rows(output), call.grad_y) + F.mse_loss(h_n, call.grad_h_n)
        loss.backward()
        optimizer.step()

    def values() -> Values:
        before = [weight.detach().clone() for weight in weights.values()]
        run()
        found: Values = {f"the gradient of {name}": leaf.grad for name, leaf in leaves.items()}
        found |= {f"{name} after it": weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for weight, value in zip(weights.values(), before, strict=True):
                weight.copy_(value)
        return found

    return Ready(run, values)


def streaming_step(module: nn.Module, call: Call) -> Ready:
    """One frame, the state going on from call to call; the values are those of all frames."""
    frames, h0 = call.x.detach().unbind(), call.h0.detach()
    step, begin, state = _stepper(module, call)
    first = frames[0]

    def values() -> Values:
        begin(h0)
        with torch.no_grad():
            y = torch.stack([step(frame) for frame in frames])
        return {"y": y, "h_n": state()}

    return Ready(lambda: step(first), values, torch.no_grad)


def _stepper(
    module: nn.Module, call: Call
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], None], Callable[[], Tensor]]:
    """What steps over a frame `[B, I]`, what sets the state `[1, B, H]`, and what reads it."""
    if isinstance(module, CompiledRNN):
        stream = rnnjit.Stream(module, call.case.batch)

        def start(state: Tensor) -> None:
            stream.state = state

        return stream.step, start, lambda: stream.state
    held = {"state": call.h0.detach()}

    def step(frame: Tensor) -> Tensor:
        y, held["state"] = module(frame[None], held["state"])
        return y[0]

    return step, lambda state: held.update(state=state), lambda: held["state"]


def _arguments(call: Call) -> tuple[Tensor | PackedSequence, Tensor]:
    """Input and initial state; what is packed is a leaf, lest packing be timed."""
    x, h0 = call.arguments()
    if isinstance(x, PackedSequence):
        x = x._replace(data=x.data.detach().requires_grad_())
    return x, h0


def _leaves(module: nn.Module, x: Tensor | PackedSequence, h0: Tensor) -> dict[str, Tensor]:
    return {"x": _rows(x), "h0": h0, **dict(module.named_parameters())}


def _rows(sequence: Tensor | PackedSequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence
