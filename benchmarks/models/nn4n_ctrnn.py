"""A rate network of neuroscience: the leaky recurrent layer of nn4n, with its own Python loop.

Song, Yang and Wang, "Training Excitatory-Inhibitory Recurrent Neural Networks for Cognitive Tasks",
2016. The compiled one is the same class, whose loop `rnnjit.adapt` describes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rnnjit
from rnnjit.bench.models import ModelCase

_INPUTS, _HIDDEN, _OUTPUTS, _STEPS, _BATCH = 6, 100, 2, 100, 16


class Network(nn.Module):
    """Input `[T, B, 6]` to outputs `[T, B, 2]`, by the layers of nn4n's CTRNN."""

    def __init__(self) -> None:
        super().__init__()
        from nn4n.model import CTRNN

        # Not the whole CTRNN, whose `train` takes no argument.
        whole = CTRNN(dims=[_INPUTS, _HIDDEN, _OUTPUTS], dt=10, tau=100)
        self.recurrent, self.readout = whole.recurrent_layer, whole.readout_layer

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        return self.readout(self.recurrent(x))


def compiled(model: nn.Module) -> Any:
    """The network with the loop of nn4n's layer compiled."""
    from nn4n.layer import RecurrentLayer

    how = rnnjit.adapt(
        "_recurrence",
        arguments=("rate", "v", "x"),
        results=("rate", "v"),
        returns=("y",),
        input_size="input_layer.input_dim",
    )
    return rnnjit.compile(model, cells={RecurrentLayer: how})


def _data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(_STEPS, _BATCH, _INPUTS, generator=generator)
    return x.to(dtype), torch.randn(_STEPS, _BATCH, _OUTPUTS, generator=generator).to(dtype)


def inference(model: nn.Module, dtype: torch.dtype):
    """The outputs of a batch."""
    x, _ = _data(dtype)
    return lambda: model(x)


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam."""
    x, target = _data(dtype)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)

    def step() -> Tensor:
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="nn4n CTRNN",
    recurrent="RecurrentLayer(6, 100)",
    remark="rnnjit.adapt describes the layer's loop.",
    call="B=16, T=100, a Python loop over steps",
    source="nn4n 1.1.1: its layers; random weights and inputs",
    requires=("nn4n==1.1.1",),
    build=Network,
    inference=inference,
    training=training,
    compile=compiled,
    layers=(Network,),
    inexact="nn4n computes in float32, whatever the dtype",
)
