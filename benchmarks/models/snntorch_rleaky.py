"""A recurrent spiking classifier of snntorch: leaky integrate-and-fire neurons that connect back.

Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning", 2023. The
model loops over snntorch's RLeaky and Leaky. The compiled one has cells with snntorch's spike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rnnjit
from rnnjit.bench.models import ModelCase

_INPUTS, _HIDDEN, _CLASSES, _STEPS, _BATCH, _BETA = 140, 128, 20, 50, 16, 0.95


class RLeaky(rnnjit.Cell):
    """`mem' = beta mem + W x + V spk - reset`, where reset is whether mem was above 1."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        from snntorch.surrogate import atan

        super().__init__(input_size, hidden_size, states=("spk", "mem"))
        self.spike = atan()

    def forward(self, x: Tensor, spk: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        """The spikes and the potential."""
        reset = (mem > 1).to(mem.dtype)
        mem = _BETA * mem + self.ih(x) + self.hh(spk) - reset
        return self.spike(mem - 1), mem


class Leaky(rnnjit.Cell):
    """`mem' = beta mem + W x - reset`; the output is the potential."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, states=("mem",), recurrent=False)

    def forward(self, x: Tensor, mem: Tensor) -> Tensor:
        """The potential."""
        return _BETA * mem + self.ih(x) - (mem > 1).to(mem.dtype)


class Loop(nn.Module):
    """The model as snntorch's users write it: input `[T, B, 140]` to potentials `[T, B, 20]`."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch

        self.input = nn.Linear(_INPUTS, _HIDDEN)
        self.hidden = snntorch.RLeaky(beta=_BETA, linear_features=_HIDDEN)
        self.output = nn.Linear(_HIDDEN, _CLASSES)
        self.leaky = snntorch.Leaky(beta=_BETA)

    def forward(self, x: Tensor) -> Tensor:
        """The potentials of the classes."""
        spk, mem = self.hidden.init_rleaky()
        last, found = self.leaky.init_leaky(), []
        for step in x:
            spk, mem = self.hidden(self.input(step), spk, mem)
            _, last = self.leaky(self.output(spk), last)
            found.append(last)
        return torch.stack(found)


class Cells(nn.Module):
    """The same model as cells of rnnjit, with the Parameters of a `Loop`."""

    def __init__(self, model: Loop) -> None:
        super().__init__()
        self.hidden = rnnjit.Recurrent(RLeaky(_INPUTS, _HIDDEN))
        self.leaky = rnnjit.Recurrent(Leaky(_HIDDEN, _CLASSES))
        recurrent = model.hidden.recurrent
        for layer, name, source in (
            (self.hidden, "ih", model.input),
            (self.hidden, "hh", recurrent),
            (self.leaky, "ih", model.output),
        ):
            setattr(layer, f"weight_{name}_l0", source.weight)
            setattr(layer, f"bias_{name}_l0", source.bias)
        self.leaky.bias_hh_l0 = None

    def forward(self, x: Tensor) -> Tensor:
        """The potentials of the classes."""
        spikes, _ = self.hidden(x)
        return self.leaky(spikes)[0]


def _data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(_STEPS, _BATCH, _INPUTS, generator=generator) < 0.1).to(dtype)
    return x, torch.randint(_CLASSES, (_BATCH,), generator=generator)


def inference(model: nn.Module, dtype: torch.dtype):
    """The potentials of a batch."""
    x, _ = _data(dtype)
    return lambda: model(x)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam on the mean potential."""
    x, labels = _data(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.cross_entropy(model(x).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="snntorch RLeaky",
    recurrent="RLeaky(140, 128) and Leaky(128, 20)",
    remark="Two small cells are written as rnnjit.Cell, with snnTorch's own surrogate.",
    call="B=16, T=50, a Python loop over steps",
    source="snntorch 1.0.0: its RLeaky and Leaky; compiled: cells of rnnjit; random weights",
    requires=("snntorch==1.0.0",),
    build=Loop,
    inference=inference,
    training=training,
    compile=lambda model: rnnjit.compile(Cells(model)),
    layers=(Loop,),
    inexact="snntorch gives spikes of float32, whatever the dtype",
)
