"""Layers of any cell by one family of simulated CUDA kernels, and by the reference in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerSpec, Needs, Rows, reference
from rnnjit.ir import CellSpec
from rnnjit_cuda import CudaBackend
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.kernels import Family
from rnnjit_cuda.launch import SimulatedLauncher, simulated_arguments
from rnnjit_cuda.sources import source

SMALL = DeviceProperties((9, 0), 4, 232_448, 233_472, 2048)
#: The largest difference, of numbers of about 1; 16-bit results are rounded in each step.
CLOSE = {
    torch.float32: 5e-6,
    torch.float64: 5e-15,
    torch.bfloat16: 2.0**-5,
    torch.float16: 2.0**-8,
}


class Simulated(CudaBackend):
    """The CUDA backend on CPU tensors, by one family of kernels wherever it has room."""

    devices = ("cpu",)

    def __init__(self, family: Family) -> None:
        self.families = (family,)  # type: ignore[misc]  # of this object alone
        self._simulator: SimulatedLauncher = SimulatedLauncher(SMALL)

    def missing(self) -> list[str]:
        return []

    def _device_reasons(self, index: int) -> list[str]:
        return []

    def _launcher(self, x: Tensor) -> SimulatedLauncher:
        return self._simulator


class Watched(SimulatedLauncher):
    """Runs kernels with a seed of its own, without one barrier, and notes their barriers."""

    def __init__(self, seed: int = 0, omit: Any = None) -> None:
        super().__init__(SMALL)
        self.seed, self.omit = seed, omit
        self.sites: set[Any] = set()

    def __call__(self, key: Any, shape: Any, arguments: Any) -> None:
        from cuda_simulator import run

        made = source(key)
        values = simulated_arguments(made.together, arguments)
        extent = shape.grid, shape.threads, shape.shared
        self.sites |= run(made.function, *extent, values, seed=self.seed, omit=self.omit)


class Layer(NamedTuple):
    """A call of a layer, at random."""

    layer: LayerSpec
    rows: Rows
    x: Tensor
    hx: tuple[Tensor, ...]
    weights: list[Tensor]
    grad_y: Tensor | None
    grad_h_n: tuple[Tensor | None, ...]

    @property
    def needs(self) -> Needs:
        return Needs(True, (True,) * len(self.hx), (True,) * len(self.weights))

    def double(self) -> Layer:
        """The same in float64."""
        found = [_double(each) for each in self[2:]]
        return Layer(self.layer, self.rows, *found)


def layer_of(
    cell: CellSpec,
    H: int,
    dtype: torch.dtype = torch.float64,
    sizes: tuple[int, ...] = (5, 5, 5),
    D: int = 1,
    bias: bool = True,
    P: int = 0,
    given: tuple[bool, ...] = (True, True, True),
) -> Layer:
    """A call at random; `given`: whether the gradients of y and of each last state are there."""
    torch.manual_seed(0)
    layer = LayerSpec(cell, 3, H, D, bias, P)
    N, packed = sum(sizes), len(set(sizes)) > 1
    rows = Rows(len(sizes), sizes[0], N, torch.tensor(sizes) if packed else None)
    states = [(D, rows.B, width) for width in layer.state_sizes]
    grad_y = torch.randn(N, D * layer.output_size).to(dtype) if given[0] else None
    wanted = zip(states, given[1:], strict=False)
    return Layer(
        layer,
        rows,
        torch.randn(N, layer.features).to(dtype),
        tuple(torch.randn(shape).to(dtype) for shape in states),
        [(torch.randn(shape) * H**-0.5).to(dtype) for shape in layer.weight_shapes * D],
        grad_y,
        tuple(torch.randn(shape).to(dtype) if each else None for shape, each in wanted),
    )


def results(backend: CudaBackend, call: Layer) -> dict[str, Tensor | None]:
    """Everything that a backend computes of a call, from memory that is NaN at first."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    try:
        output = backend.forward(*call[:5], True)
        grads = backend.backward(*call[:5], output, *call[5:], call.needs)
    finally:
        torch.use_deterministic_algorithms(False)
    return _named(output.y, output.h_n, grads)


def truth(call: Layer) -> dict[str, Tensor | None]:
    """The same by the reference, in float64."""
    with torch.no_grad():
        y, h_n = reference.layer_forward(*call.double()[:5])
        return _named(y, h_n, reference.layer_backward(*call.double(), call.needs))


def check(backend: CudaBackend, call: Layer) -> None:
    """Compare everything with the reference."""
    found, expected = results(backend, call), truth(call)
    for name, value in expected.items():
        got = found[name]
        if value is None:
            assert got is None or not got.any(), name
            continue
        assert got is not None, name
        scale = max(1.0, float(value.abs().max()))
        difference = float((got.double() - value).abs().max())
        assert difference <= CLOSE[call.x.dtype] * scale, (name, difference)


def _named(y: Tensor, h_n: tuple[Tensor, ...], grads: Any) -> dict[str, Tensor | None]:
    named = {"y": y, "grad_x": grads.x}
    for what, values in (("h_n", h_n), ("grad_hx", grads.hx), ("grad_weight", grads.weights)):
        named |= {f"{what}_{index}": value for index, value in enumerate(values)}
    return named


def _double(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_double, value))
    return None if value is None else value.double()
