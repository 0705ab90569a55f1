"""Holds a backend's tensors against eager's: by the table of tolerances, or bit by bit."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rnnjit.testing.calls import Call, Values, build
from rnnjit.testing.case import Case
from rnnjit.testing.procedures import Procedure
from rnnjit.testing.tolerances import Expected, InexactError, Pass, errors_of, judge, largest

_DRAWS = 3
_DRAWS_IN_DOUBT = 41
_DOUBT = 20  # times what is allowed; beyond it no measure of eager's error would save a backend


class Standard:
    """What eager gives for a call, and how exactly.

    One call may come out nearly exact by luck, the more so the fewer numbers there are. Eager's own
    error is therefore the largest over the call itself and several whose numbers are a hair apart:
    over a few at first, over many before a backend is failed. Those do not stand for the call where
    its numbers are all alike, since then all roundings are, too. Tensors of one kind share one
    error and one scale.

    Float64 has no wider run to show its error: it is the error that float32 makes, scaled by the
    ratio of their units in the last place.
    """

    def __init__(self, procedure: Procedure, call: Call) -> None:
        self._procedure, self._call = procedure, call
        self._eager, self._truth = _eagerly(procedure, call), self._wide(call)
        # Detached, lest a cached result keep the graphs of its calls alive.
        for values in (self._eager, self._truth):
            values.update((k, v.detach()) for k, v in values.items() if v is not None)
        self._scales: dict[str, float] = {}
        for name, tensor in self._truth.items():
            scale = 0.0 if tensor is None or not tensor.is_floating_point() else largest(tensor)
            self._scales[_kind(name)] = max(self._scales.get(_kind(name), 0.0), scale)
        self._errors = dict.fromkeys(self._scales, 0.0)
        self._draws = 0
        # Another call of a quantized layer takes long to find: only where it is in doubt.
        self.measure(1 if call.case.quantized else _DRAWS)

    @property
    def names(self) -> list[str]:
        """The tensors that eager gives."""
        return list(self._eager)

    def expected(self, name: str) -> Expected | None:
        """What one tensor is held against; None where eager has none."""
        eager, truth, kind = self._eager[name], self._truth[name], _kind(name)
        if eager is None or truth is None:
            return None
        quantized = self._call.case.quantized
        return Expected(eager, truth, self._errors[kind], self._scales[kind], quantized)

    def measure(self, draws: int) -> None:
        """Base eager's own error on this many calls at least."""
        exact = self._call.case.dtype == torch.float64
        narrow = self._call.to(torch.float32) if exact else self._call
        unit = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if exact else 1.0
        for draw in range(self._draws, draws):
            if draw == 0 and not exact:
                got, truth = self._eager, self._truth
            else:
                nearby = narrow.nearby(draw) if draw else narrow
                got, truth = _eagerly(self._procedure, nearby), self._wide(nearby)
            for name, value in got.items():
                exact_value = truth[name]
                if value is None or exact_value is None or not value.is_floating_point():
                    continue
                error = unit * largest(errors_of(value.detach(), exact_value.detach()))
                self._errors[_kind(name)] = max(self._errors[_kind(name)], error)
        self._draws = max(self._draws, draws)

    def _wide(self, call: Call) -> Values:
        return _eagerly(self._procedure, call.to(torch.float64))


@lru_cache(maxsize=600)  # every backend is held against the same
def standard(procedure: Procedure, case: Case) -> Standard:
    """What eager gives for a case."""
    return Standard(procedure, build(case))


def _eagerly(procedure: Procedure, call: Call) -> Values:
    """What a procedure gives for the standard of a call, by torch's own operators.

    Without cuDNN, which rounds float32 to TF32 unless told otherwise, draws other dropout masks,
    and has no second gradients, nor any in evaluation mode.
    """
    if not call.x.is_cuda:
        return procedure(call.standard, call)
    with torch.backends.cudnn.flags(enabled=False):
        return procedure(call.standard, call)


def _kind(name: str) -> str:
    """Outputs are y and h_n, the latter often part of the former; both biases' gradients are one.

    Other states are of a kind of their own: nothing bounds nn.LSTM's c.
    """
    return "outputs" if name in ("y", "h_n") else name.replace("bias_hh", "bias_ih")


def compare(got: Values, standard: Standard) -> None:
    """Judge every tensor of a backend by `rnnjit.testing.tolerances`.

    Args:
        got: what the backend gives, by name.
        standard: of a procedure that gives these names, and maybe others.

    Raises:
        AssertionError: a tensor is wrong, or is there where eager has none, or the reverse.
    """
    for name, found in got.items():
        expected = standard.expected(name)
        if (found is None) != (expected is None):
            raise AssertionError(
                f"{name} is {'missing' if found is None else 'there'}, "
                f"eager's is {'missing' if expected is None else 'there'}"
            )
        if found is None or expected is None:
            continue
        try:
            judge(name, _pass_of(name), found.detach(), expected)
        except InexactError as error:
            if error.excess > _DOUBT:
                raise
            standard.measure(_DRAWS_IN_DOUBT)
            again = standard.expected(name) or expected
            judge(name, _pass_of(name), found.detach(), again)


def _pass_of(name: str) -> Pass:
    if name.startswith("the second gradient"):
        return "double backward"
    return "backward" if name.startswith("the gradient") else "forward"


def expect_same(what: str, got: Values, first: Values) -> None:
    """Expect the tensors of `first` to have come out the same, bit by bit.

    All NaN count as one, see `same_numbers`.

    Raises:
        AssertionError: one did not.
    """
    for name, expected in first.items():
        found = got[name]
        if found is None or expected is None:
            same = found is expected
        else:
            same = same_numbers(found, expected)
        if not same:
            raise AssertionError(f"{what} gave other bits for {name} than the first")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, NaN included."""
    return a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, where all NaN count as one.

    IEEE 754 leaves the sign and payload of a NaN open (sections 6.2, 6.3); processors take them
    from either operand, which a compiler may exchange.
    """
    return same_bits(_one_nan(a), _one_nan(b))


def _one_nan(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.masked_fill(tensor.isnan(), float("nan"))


def _bytes(tensor: Tensor) -> Tensor:
    # Cloned, since a tensor of one element is contiguous whatever its strides.
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.view(-1).view(torch.uint8)
