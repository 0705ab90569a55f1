"""A model of the benchmark that takes no time: a linear layer before an nn.GRU."""

import torch
from torch import nn

from rnnjit.bench.models import ModelCase


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.gru = nn.Linear(3, 4), nn.GRU(4, 5)

    def forward(self, x):
        return self.gru(self.linear(x))


def _input(dtype):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 2, 3, generator=generator).to(dtype)


def inference(model, dtype):
    x = _input(dtype)
    return lambda: model(x)


def training(model, dtype):
    x = _input(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        loss = model(x)[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="tiny",
    recurrent="GRU(4, 5)",
    call="T=6, B=2",
    source="made up",
    build=Tiny,
    inference=inference,
    training=training,
    remark="nothing in the way",
)
