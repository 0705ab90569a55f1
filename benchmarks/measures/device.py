"""Calls on a device, timed by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnnjit.runtime.timing import interleave, sample

PASSES = ("forward", "forward_backward")
#: torch's layers, by what a user calls them.
LAYERS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
#: The least seconds of a sample, and about the most of all samples of one candidate.
_SAMPLE, _ENOUGH = 2e-3, 0.2


class Call:
    """One input on a device, and the passes that are timed over it.

    Args:
        T, B, H: steps, batch, and hidden and input features.
        dtype: name of torch's.
        packed: whether the input is packed, with lengths from T / 4 to T.
        device: where.
        layer: a key of `LAYERS`.
    """

    def __init__(
        self, T: int, B: int, H: int, dtype: str, packed: bool, device: str, layer: str = "rnn"
    ) -> None:
        torch.manual_seed(0)
        options: Any = {"dtype": getattr(torch, dtype), "device": device}
        self.rnn = LAYERS[layer](H, H, **options)
        x = torch.randn(T, B, H, **options)
        self.leaf = x.requires_grad_()
        self.x: Tensor | PackedSequence = self.leaf
        if packed:
            lengths = torch.linspace(T, max(T // 4, 1), B).long()
            rows = pack_padded_sequence(x.detach(), lengths)
            self.leaf = rows.data.requires_grad_()
            self.x = PackedSequence(self.leaf, rows.batch_sizes)
        self.grad = torch.randn(*self.leaf.shape[:-1], H, **options)

    def forward(self, module: nn.Module) -> Tensor:
        """y, or its data."""
        y, _ = module(self.x)
        return y.data if isinstance(y, PackedSequence) else y

    def gradients(self, module: nn.Module) -> tuple[Tensor, ...]:
        """The gradients of x and of every weight."""
        inputs = (self.leaf, *module.parameters())
        return torch.autograd.grad(self.forward(module), inputs, self.grad)

    def gradients_of_all(self, module: nn.Module) -> tuple[Tensor, ...]:
        """As `gradients`, through the last states, too."""
        y, states = module(self.x)
        ends = states if isinstance(states, tuple) else (states,)
        inputs = (self.leaf, *module.parameters())
        outputs = (y.data if isinstance(y, PackedSequence) else y, *ends)
        return torch.autograd.grad(outputs, inputs, (self.grad, *map(torch.sin, ends)))

    def apart(self, one: nn.Module, other: nn.Module) -> float:
        """The largest difference of two modules' gradients, relative to each tensor's largest."""
        pairs = zip(self.gradients_of_all(one), self.gradients_of_all(other), strict=True)
        return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)

    def run(self, module: nn.Module, passes: str) -> Callable[[], None]:
        """The function that is timed."""

        def forward() -> None:
            with torch.no_grad():
                self.forward(module)

        def both() -> None:
            self.gradients(module)

        return forward if passes == "forward" else both


def medians(
    candidates: dict[str, Callable[[], None]], rounds: int, device: str
) -> dict[str, float]:
    """The median time of each candidate, sampled in turns, by the device's own clock."""
    clock = sample if device == "cpu" else _device_sample
    for call in candidates.values():
        call()
    longest = max(clock(call, 1) for call in candidates.values())
    rounds = max(3, min(rounds, round(_ENOUGH / longest)))
    times = interleave(candidates, rounds=rounds, min_sample=_SAMPLE, clock=clock)
    return {name: timing.median for name, timing in times.items()}


def _device_sample(call: Callable[[], object], calls: int) -> float:
    """Mean device time of one of `calls` calls in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end) * 1e-3 / calls, 1e-9)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid torch's products and cuDNN to round float32 to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
