"""Protects every backend's own backward pass, against finite differences in float64."""

import pytest
import torch
from accepted import accepts
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import rnnjit
from rnnjit.ir import GRU, LSTM, RNN_RELU
from rnnjit.testing import Case, RecomputeBackend
from rnnjit.testing.calls import build

CASES = [
    Case("dense"),
    Case("relu", cell=RNN_RELU),
    Case("no-bias", bias=False),
    Case("bidirectional", bidirectional=True),
    Case("2-layers", num_layers=2),
    Case("2-layers-bidirectional", num_layers=2, bidirectional=True),
    Case("packed", lengths=(3, 2, 1)),
    Case("packed-unsorted-bidirectional", lengths=(1, 3, 2), bidirectional=True),
    Case("unbatched", unbatched=True),
    Case("lstm", cell=LSTM),
    Case("lstm-no-bias-bidirectional", cell=LSTM, bias=False, bidirectional=True),
    Case(
        "projected-packed-bidirectional",
        cell=LSTM,
        proj_size=2,
        bidirectional=True,
        lengths=(1, 3, 2),
    ),
    Case("gru", cell=GRU),
    Case("gru-packed-bidirectional", cell=GRU, lengths=(1, 3, 2), bidirectional=True),
]
SMALL = {
    "input_size": 2,
    "hidden_size": 3,
    "T": 3,
    "B": 2,
    "h0": True,
    "dtype": torch.float64,
    "enforce_sorted": False,
}
BACKENDS = [
    backend
    for backend in (*rnnjit.backends().values(), RecomputeBackend())
    if not (backend.differentiable or backend.missing())
]


def small(case):
    return Case(**{**vars(case), **SMALL})


#: What each backend accepts.
BOTH = [
    (backend, small(case))
    for backend in BACKENDS
    for case in CASES
    if accepts(backend, small(case))
]
IDS = [f"{backend.name}-{case.id}" for backend, case in BOTH]


def function_and_inputs(backend, case):
    """The layer as a function of its input, its initial states and its weights."""
    call = build(case)
    fast = rnnjit.compile(call.module, backend=backend)
    names = [name for name, _ in fast.named_parameters()]

    def function(x, *rest):
        call.x, call.hx = x, rest[: len(case.cell.states)]
        parameters = dict(zip(names, rest[len(call.hx) :], strict=True))
        output, last = functional_call(fast, parameters, call.arguments())
        states = last if isinstance(last, tuple) else (last,)
        return (output if case.lengths is None else output.data), *states

    return function, (call.x, *call.hx, *fast.parameters())


@pytest.mark.parametrize(("backend", "case"), BOTH, ids=IDS)
def test_gradients(backend, case):
    function, inputs = function_and_inputs(backend, case)
    assert gradcheck(function, inputs)


# Second derivatives are the reference's, whatever the backend: one stands for all.
@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(
            b, c, marks=() if b.name == "recompute" else pytest.mark.full, id=f"{b.name}-{c.id}"
        )
        for b, c in BOTH
    ],
)
def test_gradients_of_gradients(backend, case):
    function, inputs = function_and_inputs(backend, case)
    assert gradgradcheck(function, inputs)
