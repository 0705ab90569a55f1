"""Protects compiled operations: as exact as torch's, of NaN, Inf and signed zeros, too."""

import math

import pytest
import torch

from rnnjit import LayerSpec, Rows
from rnnjit.ir import OPERATIONS, CellSpec, Kind
from rnnjit.ir.builder import where
from rnnjit.ir.torch_evaluator import TORCH_OPERATIONS
from rnnjit_inductor import InductorBackend
from rnnjit_inductor.plan import MATRIX, Plan

CONSTANTS = {"leaky_relu": (0.1,), "clamp": (-0.5, 0.75)}
#: All but those of derivatives, which other tests compare, and those that take no two numbers.
NAMES = [
    name
    for name in OPERATIONS
    if name not in ("constant", "where", "with_slope") and not name.endswith("_backward")
]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 1e-8, 0.5, 0.75, 1.0, 20.0, 89.5, 1e30]


def every(zx, zh, h, *others):
    """A new state for each operation on two row inputs."""
    *_, a, b = others
    found = []
    for name in NAMES:
        arguments = (a, b)[: len(OPERATIONS[name].arguments)]
        value = a.builder.append(name, arguments, CONSTANTS.get(name, ()))
        of_number = OPERATIONS[name].result is Kind.NUMBER
        found.append(value if of_number else where(value, 1.0, 0.0))
    return a, a, *found


EVERY = CellSpec.trace(
    every, name="every", gates="z", states=["h", *(f"of_{n}" for n in NAMES)], row_inputs="ab"
)


def arguments(dtype):
    """Pairs of special values, then numbers of all sizes, most of them small."""
    special = torch.tensor([*SPECIAL, *(-each for each in SPECIAL)], dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-12, 1, 4000, dtype=dtype)
    numbers = torch.randn(2, 4000, generator=generator, dtype=dtype) * sizes
    pairs = zip(torch.meshgrid(special, special, indexing="ij"), numbers, strict=True)
    return [torch.cat([own.flatten(), more]) for own, more in pairs]


@pytest.mark.full
@pytest.mark.parametrize("compiled", [False, True], ids=["steps", "compiled"])
def test_each_operation_is_as_exact_as_torchs(compiled):
    a, b = arguments(torch.float32)
    layer, rows = LayerSpec(EVERY, 0, len(a), 1, False), Rows(2, 1, 2)
    x = torch.cat([a, b]).expand(2, -1).contiguous()
    hx = tuple(torch.zeros(1, 1, len(a)) for _ in EVERY.states)
    weights = [torch.zeros(shape) for shape in layer.weight_shapes]
    backend = InductorBackend(lambda *call: Plan(1, MATRIX, 1) if compiled else None)
    found = backend.forward_states(layer, rows, x, hx, weights, False).states
    for name, states in zip(NAMES, found, strict=True):
        operation, constants = TORCH_OPERATIONS[name], CONSTANTS.get(name, ())
        given = (a, b)[: len(OPERATIONS[name].arguments)]
        theirs = operation(*given, *constants).to(torch.float32)
        exact = operation(*(each.double() for each in given), *constants).double()
        for ours in states:
            same = (ours == theirs) | ours.isfinite() | (ours.isnan() & theirs.isnan())
            assert same.all(), name
            assert torch.equal(ours.isfinite(), theirs.isfinite()), name
            zeros = (ours == 0) & (theirs == 0)
            assert torch.equal(ours[zeros].signbit(), theirs[zeros].signbit()), name
            # In units of what rounding to nearest may lose: 1 is the best that there can be.
            scale = (exact.abs() * 2.0**-24).clamp_min(2.0**-150)
            errors = [((each - exact).abs() / scale)[ours.isfinite()] for each in (ours, theirs)]
            assert errors[0].max() <= 2 * errors[1].max().clamp_min(1.0), name
