"""Eager nn.RNN and its compiled stand-in, timed in turns on the same call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit
from rnnjit.bench import Call, Timing, interleave, random_call
from rnnjit.bench.peaks import fma_peak
from rnnjit.capture import capture

FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)


class Shape(NamedTuple):
    """The sizes of a call: steps, sequences, input features, hidden features."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return ", ".join(str(size) for size in self)


@dataclass(frozen=True)
class Variant:
    """What kind of nn.RNN is called.

    Attributes:
        name: for the tables.
        options: arguments of nn.RNN beside its sizes, as pairs.
        dtype: of all tensors.
        packed: whether the call is a PackedSequence with lengths from 1 to T at random.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float32
    packed: bool = False

    @property
    def bits(self) -> int:
        """Of an element."""
        return torch.finfo(self.dtype).bits

    def module(self, shape: Shape) -> nn.RNN:
        """The eager module, its weights always the same."""
        torch.manual_seed(0)
        return nn.RNN(shape.I, shape.H, dtype=self.dtype, **dict(self.options))

    def call(self, rnn: nn.RNN, shape: Shape) -> Call:
        """What to call it with; the initial state needs no gradient."""
        call = random_call(capture(rnn), shape.T, shape.B, packed=self.packed, dtype=self.dtype)
        call.h0.requires_grad_(False)
        return call


PLAIN = Variant("tanh, 1 layer")


@dataclass(frozen=True)
class Pair:
    """Times of one pass over one call.

    Attributes:
        work: floating-point operations, two for each multiply-add that eager also does.
        eager: how long nn.RNN takes.
        compiled: how long its stand-in takes.
    """

    work: float
    eager: Timing
    compiled: Timing

    @property
    def ratio(self) -> float:
        """How many times faster than eager."""
        return self.eager.median / self.compiled.median

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second."""
        return self.work / self.compiled.median * 1e-9

    def columns(self) -> dict[str, Any]:
        """For a record of a section."""
        return {
            "eager_ms": self.eager.median * 1e3,
            "rnnjit_ms": self.compiled.median * 1e3,
            "ratio": self.ratio,
            "times": {"eager": asdict(self.eager), "rnnjit": asdict(self.compiled)},
        }


class Bench:
    """Measures, and remembers what rows have in common.

    Attributes:
        rounds: samples of each time, at most.
        threads: torch's thread count.
        quick: whether a plausible figure is enough.
        sample_seconds: how long to look for shapes at which eager is faster.
    """

    def __init__(self, rounds: int, threads: int, quick: bool, sample_seconds: float) -> None:
        self.rounds, self.threads, self.quick = rounds, threads, quick
        self.sample_seconds = sample_seconds
        self._pairs: dict[tuple[Shape, Variant, str], Pair] = {}
        self._peaks: dict[tuple[int, int], float] = {}

    def peak(self, bits: int = 32, threads: int | None = None) -> float:
        """The multiply-adds of this machine, in GFLOP/s, measured once."""
        key = bits, threads or self.threads
        if key not in self._peaks:
            self._peaks[key] = fma_peak(*key, quick=self.quick) * 1e-9
        return self._peaks[key]

    def pair(self, shape: Shape, passes: str, variant: Variant = PLAIN) -> Pair:
        """Eager and compiled on one call, measured once."""
        key = shape, variant, passes
        if key not in self._pairs:
            self._pairs[key] = self.measure(*key)
        return self._pairs[key]

    def measure(
        self, shape: Shape, variant: Variant, passes: str, rounds: int = 0, seconds: float = 6.0
    ) -> Pair:
        """Eager and compiled on one call, measured anew."""
        return self.measure_all(shape, (variant,), passes, rounds, seconds)[0]

    def measure_all(
        self,
        shape: Shape,
        variants: Sequence[Variant],
        passes: str,
        rounds: int = 0,
        seconds: float = 6.0,
    ) -> list[Pair]:
        """Eager and compiled for several kinds of nn.RNN, all of them taking turns."""
        calls: dict[str, Callable[[], object]] = {}
        work = []
        for variant in variants:
            rnn = variant.module(shape)
            call = variant.call(rnn, shape)
            calls[f"eager {variant.name}"] = bound(rnn, call, passes)
            calls[f"compiled {variant.name}"] = bound(rnnjit.compile(rnn), call, passes)
            work.append(operations(rnn, call.x.shape[:-1].numel(), passes))
        times = iter(self.timed(calls, passes, rounds, seconds).values())
        return [Pair(each, next(times), next(times)) for each in work]

    def timed(
        self,
        calls: Mapping[str, Callable[[], object]],
        passes: str,
        rounds: int = 0,
        seconds: float = 6.0,
    ) -> dict[str, Timing]:
        """Interleaved times; fewer rounds where they would take much longer than `seconds`."""
        # Entered once: what it costs is the caller's, and not the layer's.
        with torch.inference_mode(passes == FORWARD):
            wanted = 1 if self.quick else min(rounds or self.rounds, _rounds_in(seconds, calls))
            return interleave(calls, rounds=wanted)


def bound(module: nn.Module, call: Call, passes: str) -> Callable[[], object]:
    """A pass of `module` over `call`, without arguments."""
    x: torch.Tensor | PackedSequence = call.x
    if call.packed is not None:
        x = PackedSequence(call.x, *tuple(call.packed)[1:])
    forward = partial(module, x, call.h0)
    if passes == FORWARD:
        return forward

    def both() -> None:
        module.zero_grad(set_to_none=True)
        call.x.grad = None
        y, _ = forward()
        y = y.data if isinstance(y, PackedSequence) else y
        y.backward(call.grad_y)

    return both


def operations(rnn: nn.RNN, rows: int, passes: str) -> float:
    """Floating-point operations of a pass over `rows` rows; the backward pass has two forwards."""
    directions = 2 if rnn.bidirectional else 1
    inputs = [rnn.input_size, *[directions * rnn.hidden_size] * (rnn.num_layers - 1)]
    of_a_row = sum(2.0 * directions * rnn.hidden_size * (i + rnn.hidden_size) for i in inputs)
    return rows * of_a_row * (1 if passes == FORWARD else 3)


def _rounds_in(seconds: float, calls: Mapping[str, Callable[[], object]]) -> int:
    """How many rounds, of two calls each, fit into some seconds; at least two."""
    for call in calls.values():
        call()
    start = perf_counter()
    for call in calls.values():
        call()
    return max(2, math.floor(seconds / (2 * (perf_counter() - start))))
