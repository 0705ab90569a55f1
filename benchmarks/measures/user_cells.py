"""Cells as users write them, and how far a backend's layers of them are from the reference.

They are in normal form, with parameters, row inputs, and without a product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import Backend, LayerSpec, Needs, Problem, Rows, reference
from rnnjit.backend import States
from rnnjit.ir import CellSpec, Value, normal_form
from rnnjit.ir.builder import exp, relu, sigmoid, softplus, tanh

_Parts = tuple[Value, ...]


def _leaky(zx: _Parts, zh: _Parts, v: Value, alpha: Value, noise: Value) -> tuple[Value, Value]:
    v = (1.0 - alpha) * v + alpha * (zx[0] + zh[0]) + noise
    return relu(v), v


def _peephole(
    zx: _Parts, zh: _Parts, h: Value, c: Value, p_i: Value, p_f: Value, p_o: Value
) -> tuple[Value, Value, Value]:
    i, f, g, o = (x + y for x, y in zip(zx, zh, strict=True))
    c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    h = sigmoid(o + p_o * c) * tanh(c)
    return h, h, c


def _integrator(zx: _Parts, zh: _Parts, h: Value, tau: Value, span: Value) -> tuple[Value, Value]:
    kept = exp(-softplus(tau) * span)
    h = kept * h + (1.0 - kept) * tanh(zx[0])
    return h, h


#: A leaky firing-rate network with noise; W_hh is multiplied with relu(v).
LEAKY = normal_form(
    CellSpec.trace(
        _leaky,
        name="leaky",
        gates=["z"],
        states=["v"],
        parameters=["alpha"],
        operand=lambda v, alpha: relu(v),
        row_inputs=["noise"],
    )
).cell
#: LSTM with peepholes (Gers, Schraudolph & Schmidhuber 2002).
PEEPHOLE = CellSpec.trace(
    _peephole,
    name="peephole",
    gates=["i", "f", "g", "o"],
    states=["h", "c"],
    parameters=["p_i", "p_f", "p_o"],
)
#: Units with a time constant each, that do not read each other, at times `span` apart.
INTEGRATOR = CellSpec.trace(
    _integrator,
    name="integrator",
    gates=["z"],
    states=["h"],
    parameters=["tau"],
    row_inputs=["span"],
)
CELLS = {cell.name: cell for cell in (LEAKY, PEEPHOLE, INTEGRATOR)}


_EXACT = torch.float64


class _Call(NamedTuple):
    """The arguments of both passes of a layer, and the gradients of its results."""

    layer: LayerSpec
    rows: Rows
    x: Tensor
    hx: States
    weights: States
    grad_y: Tensor
    grad_h_n: States
    grad_states: States

    @property
    def needs(self) -> Needs:
        return Needs(True, (True,) * len(self.hx), (True,) * len(self.weights))

    def on(self, dtype: torch.dtype, device: str) -> _Call:
        """The same numbers in a dtype on a device."""
        layer, rows, *values = self
        moved = [
            tuple(each.to(device, dtype) for each in value)
            if isinstance(value, tuple)
            else value.to(device, dtype)
            for value in values
        ]
        return _Call(layer, rows, *moved)


def difference(
    backend: Backend, cell: CellSpec, H: int, dtype: torch.dtype, device: str, *, packed: bool
) -> float:
    """How far a backend's results and gradients of a layer are from the reference's in float64.

    It is the largest difference, relative to the largest number of each tensor. The layer has two
    directions, and all its results have gradients: y and the last states and, if the backend
    records them, in a second call the states of all steps.
    """
    recording = _random_call(cell, H, packed=packed).on(dtype, "cpu")
    calls = [recording._replace(grad_states=())]
    problem = Problem(dtype, device, *recording.rows[:3], packed, True)
    if recording.grad_states and backend.records_states(recording.layer, problem):
        calls.append(recording)
    with torch.no_grad():
        found = [each for call in calls for each in _by_backend(backend, call.on(dtype, device))]
        expected = [each for call in calls for each in _by_reference(call.on(_EXACT, "cpu"))]
    return max(_apart(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def _random_call(cell: CellSpec, H: int, *, packed: bool) -> _Call:
    generator = torch.Generator().manual_seed(0)
    layer = LayerSpec(cell, 12, H, 2, True)
    sizes = [6, 6, 6, 4, 4, 1] if packed else [6] * 6
    rows = Rows(len(sizes), sizes[0], sum(sizes), torch.tensor(sizes) if packed else None)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    # Parameters are between 0.2 and 0.8, as the shares of a leak must be.
    matrices = layer.weights_per_direction - len(cell.parameters)
    weights = [
        H**-0.5 * random(*shape) if index < matrices else 0.5 + 0.3 * torch.tanh(random(*shape))
        for _ in range(2)
        for index, shape in enumerate(layer.weight_shapes)
    ]
    first, last = (tuple(random(2, rows.B, H) for _ in cell.states) for _ in range(2))
    states = tuple(random(rows.N, 2 * H) for _ in cell.states[1:])
    x, grad_y = random(rows.N, layer.features), random(rows.N, 2 * H)
    return _Call(layer, rows, x, first, tuple(weights), grad_y, last, states)


def _by_backend(backend: Backend, call: _Call) -> list[Tensor | None]:
    given = call[:5]
    if call.grad_states:
        output = backend.forward_states(*given, True)
        grads = backend.backward_states(*given, output, *call[5:], call.needs)
    else:
        output = backend.forward(*given, True)
        grads = backend.backward(*given, output, call.grad_y, call.grad_h_n, call.needs)
    return [output.y, *output.h_n, *output.states, grads.x, *grads.hx, *grads.weights]


def _by_reference(call: _Call) -> list[Tensor | None]:
    output = reference.layer_forward_states(*call[:5])
    grads = reference.layer_backward(
        *call[:5], call.grad_y, call.grad_h_n, call.needs, call.grad_states
    )
    states = output.states if call.grad_states else ()
    return [output.y, *output.h_n, *states, grads.x, *grads.hx, *grads.weights]


def _apart(ours: Tensor | None, theirs: Tensor | None) -> float:
    """The largest difference relative to the largest number; infinite if one is NaN.

    None counts as zeros: no gradient reaches the tensor.
    """
    if ours is None or not ours.numel():
        return float("inf") if theirs is not None and bool(theirs.any()) else 0.0
    expected = torch.zeros_like(ours).double().cpu() if theirs is None else theirs
    largest = expected.abs().max().clamp(min=1e-30)
    found = float((ours.cpu().double() - expected).abs().max() / largest)
    return found if found == found else float("inf")
