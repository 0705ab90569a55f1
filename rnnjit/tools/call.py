"""One call to a recurrent layer: the inputs and the output gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnnjit.backend import States
from rnnjit.frontend.arguments import as_hx
from rnnjit.spec import Problem, RNNSpec


@dataclass(frozen=True)
class Call:
    """The inputs of a call and the gradients of its outputs.

    Attributes:
        x: leaf `[T, B, I]` (`[B, T, I]` if batch_first), or the rows `[N, I]` of a packed batch.
        hx: leaves, each state `[L*D, B, P or H]`.
        grad_y: gradient of y, `[T, B, D*P]` (`[B, T, D*P]`), or `[N, D*P]` if packed.
        grad_h_n: gradients of the last states, each `[L*D, B, P or H]`.
        steps: T, time steps of the longest sequence.
        batch: B, the number of sequences.
        packed: the PackedSequence whose `data` is replaced by `x`, or None for a dense call.
        options: further arguments of the call by name, such as `reset`.
    """

    x: Tensor
    hx: States
    grad_y: Tensor
    grad_h_n: States
    steps: int
    batch: int
    packed: PackedSequence | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Call:
        """The same call in another dtype, with new leaves."""
        return replace(
            self,
            x=leaf(self.x.to(dtype)),
            hx=tuple(leaf(state.to(dtype)) for state in self.hx),
            grad_y=self.grad_y.to(dtype),
            grad_h_n=tuple(grad.to(dtype) for grad in self.grad_h_n),
            options={name: _cast(value, dtype) for name, value in self.options.items()},
        )

    @property
    def input(self) -> Tensor | PackedSequence:
        """The input as the module takes it."""
        if self.packed is None:
            return self.x
        return PackedSequence(self.x, *tuple(self.packed)[1:])

    def outputs(self, module: nn.Module) -> tuple[Tensor, ...]:
        """The outputs of `module`: y (if packed, its rows) and each last state."""
        output, h_n, *_ = module(self.input, as_hx(self.hx), **self.options)
        y = output if self.packed is None else output.data
        return (y, h_n) if isinstance(h_n, Tensor) else (y, *h_n)

    def gradients(self, module: nn.Module) -> tuple[Tensor, ...]:
        """Gradients of `sum(y * grad_y) + sum(h_n * grad_h_n)` for x, hx and every weight.

        Weights that are frozen are left out; what nothing depends on has zeros.
        """
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        leaves, given = (self.x, *self.hx, *weights), (self.grad_y, *self.grad_h_n)
        pairs = zip(self.outputs(module), given, strict=True)
        reached = [pair for pair in pairs if pair[0].requires_grad]
        if not reached:
            return tuple(map(torch.zeros_like, leaves))
        outputs, grads = map(tuple, zip(*reached, strict=True))
        return torch.autograd.grad(
            *(outputs, leaves, grads), allow_unused=True, materialize_grads=True
        )

    def problem(self, *, needs_grad: bool) -> Problem:
        """The properties of this call by which a backend accepts or declines it."""
        rows = self.steps * self.batch if self.packed is None else self.x.shape[0]
        return Problem(
            self.x.dtype,
            self.x.device.type,
            self.steps,
            self.batch,
            rows,
            self.packed is not None,
            needs_grad,
            self.x.get_device(),
        )


def random_call(
    spec: RNNSpec,
    steps: int,
    batch: int,
    *,
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    """Draw a call with standard normal inputs and output gradients; deterministic by its arguments.

    Args:
        spec: the configuration of the module to call.
        steps: T, at least 1.
        batch: B, at least 1.
        packed: pack sequences whose lengths are uniform in `[1, T]`, unsorted, one of them T.
        dtype: dtype of all tensors; values are drawn in float64 and rounded.
        seed: seed of the random numbers; torch's global generator is not used.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(dtype)

    features = spec.num_directions * (spec.proj_size or spec.hidden_size)
    states = spec.state_shapes(batch)
    sequence = None
    if packed:
        lengths = torch.randint(
            *(1, steps + 1, (batch,)), generator=generator, dtype=torch.int64, device="cpu"
        )
        lengths[-1] = steps
        padded = draw(steps, batch, spec.input_size)
        sequence = pack_padded_sequence(padded, lengths, enforce_sorted=False)
        x = sequence.data
    else:
        outer = (batch, steps) if spec.batch_first else (steps, batch)
        x = draw(*outer, spec.input_size)
    grad_y = draw(*x.shape[:-1], features)
    hx = tuple(leaf(draw(*shape)) for shape in states)
    grad_h_n = tuple(draw(*shape) for shape in states)
    return Call(leaf(x), hx, grad_y, grad_h_n, steps, batch, sequence)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """An argument whose floating-point tensors have another dtype."""
    if isinstance(value, (tuple, list)):
        return tuple(_cast(each, dtype) for each in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def leaf(tensor: Tensor) -> Tensor:
    """A copy that requires gradients."""
    return tensor.detach().clone().requires_grad_()
