"""The conformance kit's quick cases over every plan of the CUDA backend, in numba's simulator."""

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit import LayerSpec, Rows
from rnnjit.testing.suite import pairs
from rnnjit_cuda import CudaBackend
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.launch import SimulatedLauncher
from rnnjit_cuda.plan import PLANS

LAYER = LayerSpec("tanh", 20, 20, 2, True), Rows(7, 5, 35)
SMALL = DeviceProperties((9, 0), 4, 232_448, 233_472, 2048)


class Simulated(CudaBackend):
    """The CUDA backend on CPU tensors, with one plan wherever that plan can be had."""

    device = "cpu"

    def __init__(self, plan):
        self.plans = (plan,)
        self._simulator = SimulatedLauncher(SMALL)

    def missing(self):
        return []

    def _device_reasons(self, index):
        return []

    def _launcher(self, x):
        return self._simulator


BACKENDS = {plan: Simulated(plan) for plan in PLANS}
HALF = ("tanh-bf16", "relu-bf16", "tanh-f16")
PAIRS = [pair for pair in pairs() if pair.case.quick or pair.case.id in HALF]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.name}-{pair.case.id}")
def test_quick_cases(plan, pair):
    backend = BACKENDS[plan]
    assert not pair.declined_by(backend)
    pair.check.run(backend, pair.case)


def test_the_plan_that_was_asked_for_runs():
    for plan, backend in BACKENDS.items():
        recurrence = backend._recurrence(*LAYER, torch.empty(0), "backward")
        assert recurrence._cut.key.plan == plan


class OutOfMemory(SimulatedLauncher):
    """Has no memory for its first launch."""

    failed = False

    def __call__(self, key, shape, arguments):
        if not self.failed:
            self.failed = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().__call__(key, shape, arguments)


@pytest.mark.parametrize("plan", PLANS)
def test_a_module_is_usable_after_an_out_of_memory_error(plan):
    backend = Simulated(plan)
    eager = nn.RNN(3, 5)
    module = rnnjit.compile(eager, backend=backend)
    x = torch.randn(4, 2, 3)
    backend._simulator = OutOfMemory(SMALL)
    with pytest.raises(torch.OutOfMemoryError):
        module(x)
    y, _ = module(x)
    torch.testing.assert_close(y, eager(x)[0])
    backend._simulator = OutOfMemory(SMALL)
    with pytest.raises(torch.OutOfMemoryError):
        y.sum().backward()
    y, _ = module(x)
    found = torch.autograd.grad(y.sum(), tuple(module.parameters()))
    expected = torch.autograd.grad(eager(x)[0].sum(), tuple(eager.parameters()))
    torch.testing.assert_close(found, expected)
