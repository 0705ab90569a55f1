"""A recurrent spiking layer of norse: LIF neurons with a synaptic current, a step of 1 ms.

Pehle and Pedersen, "Norse - A deep learning library for spiking neural networks", 2021. The model
is norse's LIFRecurrent and a linear readout. The compiled one has a cell that calls norse's step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rnnjit
from rnnjit.bench.models import ModelCase

_INPUTS, _HIDDEN, _CLASSES, _STEPS, _BATCH = 80, 100, 10, 50, 16


class LIF(rnnjit.Cell):
    """norse's step, with its parameters as numbers: tensors in a tuple are no buffers of a cell."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        from norse.torch.functional.lif import LIFParameters

        super().__init__(input_size, hidden_size, states=("z", "v", "i"), bias=False)
        plain = [getattr(value, "item", lambda v=value: v)() for value in LIFParameters()]
        self.p = LIFParameters(*plain)

    def forward(self, x: Tensor, z: Tensor, v: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        """The spikes, the potential and the current."""
        from norse.torch.functional.lif import LIFState, lif_step

        spikes, after = lif_step(x, LIFState(z, v, i), self.weight_ih, self.weight_hh, self.p)
        return spikes, after.v, after.i


class Loop(nn.Module):
    """norse's layer: input `[T, B, 80]` to the scores of classes `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        from norse.torch import LIFRecurrent

        self.hidden = LIFRecurrent(_INPUTS, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        return self.output(self.hidden(x)[0].mean(0))


class Cells(nn.Module):
    """The same model as a cell of rnnjit, with the Parameters of a `Loop`."""

    def __init__(self, model: Loop) -> None:
        super().__init__()
        self.hidden = rnnjit.Recurrent(LIF(_INPUTS, _HIDDEN))
        self.hidden.weight_ih_l0 = model.hidden.input_weights
        self.hidden.weight_hh_l0 = model.hidden.recurrent_weights
        self.output = model.output

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        return self.output(self.hidden(x)[0].mean(0))


def _data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(_STEPS, _BATCH, _INPUTS, generator=generator) < 0.2).to(dtype)
    return x, torch.randint(_CLASSES, (_BATCH,), generator=generator)


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of a batch."""
    x, _ = _data(dtype)
    return lambda: model(x)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    x, labels = _data(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="norse LIFRecurrent",
    recurrent="LIFRecurrent(80, 100)",
    remark="A cell is written that calls Norse's own lif_step.",
    call="B=16, T=50, a Python loop over steps",
    source="norse 1.1.0: its LIFRecurrent, compiled a cell with its lif_step; random weights",
    requires=("norse==1.1.0",),
    build=Loop,
    inference=inference,
    training=training,
    compile=lambda model: rnnjit.compile(Cells(model)),
    layers=(Loop,),
)
