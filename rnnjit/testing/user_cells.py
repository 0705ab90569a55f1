"""Cells as users write them, for the kit: a backend gets them by lowering operations.

Between them they have what torch's cells lack: parameters, row inputs, no recurrent product, an
output that is not the state, and a recurrent operand that is not the state.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnjit.cells import Cell, trace_cell
from rnnjit.ir import CellSpec, NormalForm, normal_form


class Leaky(Cell):
    """h' = (1 - a) h + a (W_ih x + W_hh relu(h)), out = relu(h'): parameters and another output."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias=bias)
        self.a = nn.Parameter(torch.full((hidden_size,), 0.3, device="cpu", dtype=torch.float32))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        h = (1 - self.a) * h + self.a * (self.ih(x) + self.hh(torch.relu(h)))
        return torch.relu(h), h


class Peephole(Cell):
    """An LSTM whose gates see the cell state: many gates, two states and parameters."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, gates=4, states=("h", "c"), bias=bias)
        self.p = nn.Parameter(torch.zeros(3, hidden_size, device="cpu", dtype=torch.float32))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        kept = torch.sigmoid(f + self.p[1] * c) * c
        c = kept + torch.sigmoid(i + self.p[0] * c) * torch.tanh(g)
        return torch.sigmoid(o + self.p[2] * c) * torch.tanh(c), c


class Timed(Cell):
    """h' = h + s(x) (tanh(W_ih x + W_hh h) - h): the step size s is a row input."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias=bias)
        self.rate = nn.Parameter(torch.zeros(input_size, device="cpu", dtype=torch.float32))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One step."""
        step = torch.sigmoid(x @ self.rate).unsqueeze(-1)
        return h + step * (torch.tanh(self.ih(x) + self.hh(h)) - h)


class Integrator(Cell):
    """h' = k(x) h + (1 - k(x)) W_ih x, with k = sigmoid(W_k x): row inputs and no product."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, gates=2, bias=bias, recurrent=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One step."""
        keep, new = self.ih(x).chunk(2, -1)
        keep = torch.sigmoid(keep)
        return keep * h + (1 - keep) * F.softplus(new)


USER_CELLS: dict[str, type[Any]] = {
    "leaky": Leaky,
    "peephole": Peephole,
    "timed": Timed,
    "integrator": Integrator,
}


class Known(NamedTuple):
    """What tracing a cell gives.

    Attributes:
        spec: the cell as it is written.
        form: its normal form, which backends compute.
        multiplies_x: whether backends compute W_ih x; else its row inputs are all of x.
        bias: whether they add the biases.
    """

    spec: CellSpec
    form: NormalForm
    multiplies_x: bool
    bias: bool


@lru_cache(maxsize=64)
def known(cell: str) -> Known:
    """What tracing one of `USER_CELLS` gives."""
    traced = trace_cell(USER_CELLS[cell](3, 4))
    return Known(traced.spec, normal_form(traced.spec), traced.input_size > 0, traced.bias)
