"""A temporal graph network: a GRUCell updates the memories of the nodes that events touch.

Rossi et al., "Temporal Graph Networks for Deep Learning on Dynamic Graphs", 2020. This is the
TGNMemory of PyTorch Geometric at the sizes of its example: 100 features, batches of 200 events.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_NODES, _MESSAGE, _MEMORY, _EVENTS, _BATCHES = 1000, 172, 100, 200, 4


class LinkPredictor(nn.Module):
    """The memory of all nodes, and the scores of edges."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import TGNMemory
        from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator

        message = IdentityMessage(_MESSAGE, _MEMORY, _MEMORY)
        sizes = _NODES, _MESSAGE, _MEMORY, _MEMORY
        self.memory = TGNMemory(*sizes, message, LastAggregator())
        self.source, self.target = nn.Linear(_MEMORY, _MEMORY), nn.Linear(_MEMORY, _MEMORY)
        self.final = nn.Linear(_MEMORY, 1)

    def forward(self, ends: Tensor) -> Tensor:
        """The scores of edges between nodes `[2, events]`."""
        nodes, places = ends.unique(return_inverse=True)
        z, _ = self.memory(nodes)
        source, target = z[places[0]], z[places[1]]
        return self.final((self.source(source) + self.target(target)).relu()).squeeze(-1)


def _batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The ends, times and messages of events."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(_BATCHES):
        ends = torch.randint(_NODES, (2, _EVENTS), generator=generator)
        times = torch.arange(_EVENTS) + number * _EVENTS
        found.append((ends, times, torch.randn(_EVENTS, _MESSAGE, generator=generator).to(dtype)))
    return found


def inference(model: nn.Module, dtype: torch.dtype):
    """The scores of some batches of events, each of which is remembered."""
    batches = _batches(dtype)

    def call() -> list[Tensor]:
        model.memory.reset_state()
        found = []
        for ends, times, messages in batches:
            found.append(model(ends))
            model.memory.update_state(*ends, times, messages)
        return found

    return call


def training(model: nn.Module, dtype: torch.dtype):
    """One step of Adam for each batch of events."""
    batches = _batches(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> Tensor:
        model.memory.reset_state()
        losses = []
        for ends, times, messages in batches:
            scores = model(ends)
            loss = nn.functional.softplus(-scores).mean()
            optimizer.zero_grad()
            model.memory.update_state(*ends, times, messages)
            loss.backward()
            optimizer.step()
            model.memory.detach()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    return step


CASE = ModelCase(
    name="TGN",
    recurrent="GRUCell(472, 100)",
    remark="One GRUCell call a batch; gathering and scattering memory take the rest.",
    call="4 batches of 200 events, a row for each of some 330 nodes",
    source="torch-geometric 2.8.1: its TGNMemory; random weights and events",
    requires=("torch-geometric==2.8.1",),
    build=LinkPredictor,
    inference=inference,
    training=training,
)
