"""Protects every backend's own backward pass, against finite differences in float64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import rnnjit
from rnnjit.testing import Case, RecomputeBackend
from rnnjit.testing.calls import build

CASES = [
    Case("dense"),
    Case("relu", nonlinearity="relu"),
    Case("no-bias", bias=False),
    Case("bidirectional", bidirectional=True),
    Case("2-layers", num_layers=2),
    Case("2-layers-bidirectional", num_layers=2, bidirectional=True),
    Case("packed", lengths=(3, 2, 1)),
    Case("packed-unsorted-bidirectional", lengths=(1, 3, 2), bidirectional=True),
    Case("unbatched", unbatched=True),
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


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def function_and_inputs(request, backend):
    """The layer as a function of its input, its initial state and its weights."""
    call = build(Case(**{**vars(request.param), **SMALL}))
    fast = rnnjit.compile(call.module, backend=backend)
    names = [name for name, _ in fast.named_parameters()]

    def function(x, h0, *weights):
        call.x, call.hx = x, (h0,)
        parameters = dict(zip(names, weights, strict=True))
        output, h_n = functional_call(fast, parameters, call.arguments())
        return (output if call.case.lengths is None else output.data), h_n

    return function, (call.x, *call.hx, *fast.parameters())


def test_gradients(function_and_inputs):
    function, inputs = function_and_inputs
    assert gradcheck(function, inputs)


# Second derivatives are the reference's, whatever the backend: one stands for all.
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(each, marks=() if each.name == "numba" else pytest.mark.full, id=each.name)
        for each in BACKENDS
    ],
)
def test_gradients_of_gradients(function_and_inputs):
    function, inputs = function_and_inputs
    assert gradgradcheck(function, inputs)
