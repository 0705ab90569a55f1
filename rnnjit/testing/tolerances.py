"""How far a backend's numbers may lie from the truth: one table, one judge.

The truth is eager, torch's own layer, run in float64 on the same values; of layers of int8
matrices, which torch lacks, it is `rnnjit.testing.int8.Contract`. A backend's largest error may be
a small multiple of the error that eager itself makes in the dtype of the case, plus a few units in
the last place of the largest true value, since eager's error can be zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Pass = Literal["forward", "backward", "double backward"]


@dataclass(frozen=True)
class Tolerance:
    """How much error is allowed.

    Attributes:
        factor: multiple of eager's own largest error.
        floor: multiple of the dtype's epsilon times the largest true value.
    """

    factor: float
    floor: float


TOLERANCES: dict[tuple[torch.dtype, Pass], Tolerance] = {
    (torch.float32, "forward"): Tolerance(factor=2, floor=4),
    (torch.float32, "backward"): Tolerance(factor=2, floor=8),
    # The truth is as inexact as what is judged, and eager's own error is an estimate.
    (torch.float64, "forward"): Tolerance(factor=4, floor=8),
    (torch.float64, "backward"): Tolerance(factor=4, floor=16),
    (torch.float64, "double backward"): Tolerance(factor=4, floor=64),
    (torch.bfloat16, "forward"): Tolerance(factor=2, floor=2),
    (torch.bfloat16, "backward"): Tolerance(factor=2, floor=4),
    (torch.float16, "forward"): Tolerance(factor=2, floor=2),
    (torch.float16, "backward"): Tolerance(factor=2, floor=4),
    # Layers of int8 matrices: float32 after exact integers, see `rnnjit.testing.int8.MARGIN`.
    (torch.int8, "forward"): Tolerance(factor=2, floor=4),
}


@dataclass(frozen=True)
class Expected:
    """What one tensor of a backend is held against.

    Attributes:
        eager: eager's tensor in the dtype of the case.
        truth: eager's tensor from the float64 run.
        own: eager's own largest error.
        scale: the largest true value.
        quantized: whether the matrices of the layer are int8.
    """

    eager: Tensor
    truth: Tensor
    own: float
    scale: float
    quantized: bool = False


class InexactError(AssertionError):
    """A tensor has the right form, but its error is too large.

    Attributes:
        excess: the error as a multiple of what is allowed.
    """

    def __init__(self, message: str, excess: float) -> None:
        super().__init__(message)
        self.excess = excess


def judge(name: str, which: Pass, got: Tensor, expected: Expected) -> None:
    """Hold one tensor of a backend against eager's.

    NaN and infinities must stand exactly where eager has them; everything else is judged by its
    largest error. Tensors of integers must be equal.

    Args:
        name: what the tensor is, for the message.
        which: row of the table, together with eager's dtype, or int8 for int8 matrices.
        got: the backend's tensor.
        expected: what it is held against.

    Raises:
        InexactError: `got` differs by more than the table allows; the message says how and where.
        AssertionError: `got` is of another form, or NaN and infinities stand elsewhere.
    """
    eager, own, scale = expected.eager, expected.own, expected.scale
    if got.shape != eager.shape or got.dtype != eager.dtype:
        raise AssertionError(
            f"{name} is {got.dtype} {list(got.shape)}, eager's is {eager.dtype} {list(eager.shape)}"
        )
    if not eager.is_floating_point():
        if not torch.equal(got, eager):
            raise AssertionError(f"{name} is {got.tolist()}, eager's is {eager.tolist()}")
        return
    _judge_special(name, got, eager)
    errors = errors_of(got, expected.truth)
    worst = largest(errors)
    info = torch.finfo(eager.dtype)
    rule = TOLERANCES[torch.int8 if expected.quantized else eager.dtype, which]
    # Below the smallest normal number a kernel may flush to zero where eager does not.
    allowed = rule.factor * own + rule.floor * info.eps * scale + info.tiny
    if worst > allowed:
        at = (errors == worst).nonzero()[0].tolist()
        raise InexactError(
            f"{name} is off by {worst:.3g} at {at}: eager's own error is {own:.3g} and "
            f"{allowed:.3g} is allowed (values up to {scale:.3g})",
            worst / allowed,
        )


def errors_of(got: Tensor, truth: Tensor) -> Tensor:
    """The absolute difference, in float64; 0 where either is NaN or infinite."""
    errors = (got.double() - truth).abs()
    return errors.where(errors.isfinite(), 0)


def largest(values: Tensor) -> float:
    """The largest finite magnitude in a tensor; 0 if there is none."""
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _judge_special(name: str, got: Tensor, eager: Tensor) -> None:
    for kind, found, expected in (
        ("NaN", got.isnan(), eager.isnan()),
        ("+Inf", got.isposinf(), eager.isposinf()),
        ("-Inf", got.isneginf(), eager.isneginf()),
    ):
        wrong = found != expected
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name} has {int(found.sum())} {kind}, eager has {int(expected.sum())}: at "
                f"{list(at)} it is {float(got[at])}, eager's is {float(eager[at])}"
            )
