"""Protects each family of CUDA kernels, in numba's simulator: the kit, and other cells."""

import pytest
import torch
from cuda_cells import DECAY, SIGMOID
from cuda_layers import SMALL, Simulated
from torch import nn

import rnnjit
from rnnjit import LayerSpec, Needs, Rows, reference
from rnnjit.ir import RNN_TANH
from rnnjit.testing.suite import pairs
from rnnjit_cuda.kernels import CELL_FAMILIES, FAMILIES
from rnnjit_cuda.launch import SimulatedLauncher

LAYER = LayerSpec(RNN_TANH, 20, 20, 2, True), Rows(7, 5, 35)
BACKENDS = {family: Simulated(family) for family in FAMILIES}
HALF = ("tanh-bf16", "relu-bf16", "tanh-f16")
PAIRS = [
    pair
    for pair in pairs()
    if (pair.case.quick and not pair.case.quantized) or pair.case.id in HALF
]
ELMAN = list(dict.fromkeys(pair.case for pair in PAIRS if pair.case.cell.is_elman))
CELLS = list(dict.fromkeys(pair.case for pair in PAIRS if not pair.case.cell.is_elman))


def quick_cases():
    """Every family with every other case in one check; the rest is `full`.

    So are repeated calls: `test_barriers` repeats launches, in other orders of threads.
    """
    chosen = [(family, case) for family in FAMILIES for case in ELMAN]
    chosen += [
        (family, case)
        for family in CELL_FAMILIES
        for case in CELLS
        # Which every family leaves to "step".
        if family == "step" or not case.proj_size
    ]
    for f, family in enumerate(FAMILIES):
        for c, case in enumerate(case for name, case in chosen if name == family):
            own = [pair for pair in PAIRS if pair.case == case]
            for index, pair in enumerate(own):
                first = (f + c) % 2 == 0 and index == (f + c) // 2 % len(own)
                marks = () if first and pair.name != "repeated" else pytest.mark.full
                name = f"{family}-{pair.name}-{case.id}"
                yield pytest.param(family, pair, id=name, marks=marks)


@pytest.mark.parametrize(("family", "pair"), list(quick_cases()))
def test_quick_cases(family, pair):
    backend = BACKENDS[family]
    assert not pair.declined_by(backend)
    pair.check.run(backend, pair.case)


def test_the_family_that_was_asked_for_runs():
    for family, backend in BACKENDS.items():
        recurrence = backend._recurrence(*LAYER, torch.empty(0), "backward")
        assert recurrence._plan.key.family == family


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", [SIGMOID, DECAY], ids=lambda cell: cell.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_that_no_kernel_was_written_for(family, cell, packed):
    backend, layer = BACKENDS[family], LayerSpec(cell, 3, 5, 2, True)
    assert cell.operations <= backend.operations
    assert backend.why_not_cell(cell) == []
    sizes = torch.tensor([4, 2, 1]) if packed else None
    rows = Rows(3, 4, 7 if packed else 12, sizes)
    torch.manual_seed(0)
    x, hx = torch.rand(rows.N, 3), (torch.rand(2, 4, 5),)
    weights = [torch.rand(shape) / 5 for shape in layer.weight_shapes * 2]
    needs = Needs(True, (True,), (True,) * len(weights))
    grad_y, grad_h_n = torch.randn(rows.N, 10), (torch.randn(2, 4, 5),)
    output = backend.forward(layer, rows, x, hx, weights, True)
    y, h_n = reference.layer_forward(layer, rows, x, hx, weights)
    torch.testing.assert_close((output.y, output.h_n), (y, h_n))
    given = layer, rows, x, hx, weights
    found = backend.backward(*given, output, grad_y, grad_h_n, needs)
    expected = reference.layer_backward(*given, grad_y, grad_h_n, needs)
    torch.testing.assert_close(tuple(found), tuple(expected))


class OutOfMemory(SimulatedLauncher):
    """Has no memory for its first launch."""

    failed = False

    def __call__(self, key, shape, arguments):
        if not self.failed:
            self.failed = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().__call__(key, shape, arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_is_usable_after_an_out_of_memory_error(family):
    backend = Simulated(family)
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
