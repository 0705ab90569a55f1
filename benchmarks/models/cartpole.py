"""A policy gradient on CartPole: an nn.RNN acts step by step and learns from whole episodes.

REINFORCE (Williams 1992) as tutorials write it, with a recurrent layer of 128 units: each step of
the environments is a call of T=1, the update one call over all their steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_ENVIRONMENTS, _STEPS = 8, 100


class Policy(nn.Module):
    """Observations [T, B, 4] to scores of actions [T, B, 2], and the state after them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 128)
        self.head = nn.Linear(128, 2)

    def forward(self, seen: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The scores and the state."""
        hidden, state = self.rnn(seen, state)
        return self.head(hidden), state


def _play(model: Policy, dtype: torch.dtype, environments: Any) -> tuple[Tensor, ...]:
    """Play from the start for some steps: what was seen, done and alive, and the last scores.

    An environment whose pole has fallen plays on, without reward.
    """
    generator = torch.Generator().manual_seed(2)
    chances = torch.rand(_STEPS, _ENVIRONMENTS, generator=generator)
    seen, done, alive, state = [], [], [torch.ones(_ENVIRONMENTS, dtype=dtype)], None
    observation, _ = environments.reset(seed=3)
    for chance in chances:
        seen.append(torch.from_numpy(observation).to(dtype))
        scores, state = model(seen[-1][None], state)
        done.append((chance < scores[0].softmax(-1)[:, 1]).long())
        observation, _, ended, _, _ = environments.step(done[-1].numpy())
        alive.append(alive[-1] * ~torch.from_numpy(ended))
    return torch.stack(seen), torch.stack(done), torch.stack(alive[1:]), scores


def _environments() -> Any:
    import gymnasium

    return gymnasium.make_vec("CartPole-v1", _ENVIRONMENTS, vectorization_mode="vector_entry_point")


def inference(model: Policy, dtype: torch.dtype):
    """Play some steps."""
    environments = _environments()
    return lambda: _play(model, dtype, environments)


def training(model: Policy, dtype: torch.dtype):
    """Play, then one step of Adam."""
    environments = _environments()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        with torch.no_grad():
            seen, done, alive, _ = _play(model, dtype, environments)
        returns = alive.flip(0).cumsum(0).flip(0)
        chosen = model(seen)[0].log_softmax(-1).gather(-1, done[..., None])[..., 0]
        loss = -(chosen * (returns - returns.mean()) / returns.std()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="CartPole policy gradient",
    recurrent="RNN(4, 128)",
    remark="The environment and Python take most of acting.",
    call=f"{_STEPS} steps of B=8, T=1; the update B=8, T={_STEPS}",
    source="rebuilt as tutorials write it; gymnasium's environment; random weights",
    requires=("gymnasium==1.4.0",),
    build=Policy,
    inference=inference,
    training=training,
)
