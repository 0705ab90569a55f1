"""The correctness gate: a contestant with wrong values or gradients gets no time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_packed_sequence

from rnnjit.bench import records
from rnnjit.bench.arrays import Array, Arrays
from rnnjit.bench.contestants.torch_modules import as_tuple, module_of, tensor_of
from rnnjit.frontend.capture import capture
from rnnjit.testing.calls import Call, Values, gradients, named_states
from rnnjit.testing.case import Case
from rnnjit.testing.compare import Standard, compare
from rnnjit.testing.tolerances import errors_of, largest


class Judgement(NamedTuple):
    """The result of the gate.

    Attributes:
        wrong: what is wrong, "" if nothing is.
        error: largest absolute difference from eager in float64; None if it cannot be computed.
    """

    wrong: str
    error: float | None


class CorrectnessGate:
    """Checks the results of one case with the conformance kit's comparison and tolerances.

    The reference is torch's own layer, run in float64 by this process on the same arrays.

    Attributes:
        eager_error: eager's own largest error in the case's dtype.
    """

    def __init__(self, case: records.Case, arrays: Arrays) -> None:
        self._standard = Standard(eagerly, call_of(case, arrays))
        own = [self._standard.expected(name) for name in self._standard.names]
        self.eager_error = max(expected.own for expected in own if expected is not None)

    def judge(self, results: Mapping[str, Array]) -> Judgement:
        """Compare the results of a contestant with eager's; `results` is as in `Ready.results`."""
        got: Values = {}
        for name in self._standard.names:
            key = name.replace("the gradient of", "grad")
            if key not in results:
                return Judgement(f"it gives no {key}", None)
            got[name] = tensor_of(results[key])
        try:
            compare(got, self._standard)
        except AssertionError as error:
            return Judgement(str(error), self._error(got))
        return Judgement("", self._error(got))

    def _error(self, got: Values) -> float | None:
        errors = []
        for name, value in got.items():
            expected = self._standard.expected(name)
            if expected is None or value is None or value.shape != expected.truth.shape:
                return None
            errors.append(largest(errors_of(value, expected.truth)))
        return max(errors)


def call_of(case: records.Case, arrays: Arrays) -> Call:
    """Convert a benchmark case and its arrays to a call of the conformance kit.

    A case of one cell becomes a step of its layer, which has the same weights.
    """
    module = module_of(structs.replace(case, as_cell=False), arrays)
    assert isinstance(module, nn.RNNBase)
    spec = capture(module)
    kit = Case(
        "bench",
        input_size=spec.input_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        cell=spec.cell,
        bidirectional=spec.bidirectional,
        proj_size=spec.proj_size,
        lengths=None if arrays.lengths is None else tuple(arrays.lengths.tolist()),
        dtype=getattr(torch, case.dtype),
        training=case.trains,
    )
    x, *hx = (tensor_of(array).requires_grad_(case.trains) for array in (arrays.x, *arrays.hx))
    grads = tuple(map(tensor_of, arrays.grad_hn))
    return Call(kit, module, x, tuple(hx), tensor_of(arrays.grad_y), grads)


def eagerly(module: nn.Module, call: Call) -> Values:
    """Run eager; the results are laid out as in `Ready.results`."""
    with torch.set_grad_enabled(call.case.training), warnings.catch_warnings():
        # Torch says that oneDNN does not take it; who measures need not know.
        warnings.filterwarnings("ignore", "LSTM with projections")
        output, last = module(*call.arguments())
        y, h_n = output, as_tuple(last)
        if not isinstance(output, Tensor):
            y = pad_packed_sequence(output, total_length=call.x.shape[0])[0]
        found: Values = {"y": y, **named_states(call.case, h_n, "_n")}
        return found | gradients(call, y, h_n) if call.case.training else found
