"""PPO with an LSTM over Atari frames: the update resets states in a loop of single steps.

As in CleanRL: convolutions, LSTM(512, 128), a linear layer each for actor and critic. Rollout and
update call the LSTM with T=1, and states masked where an episode starts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_ENVIRONMENTS, _STEPS, _ACTIONS = 8, 32, 4
States = tuple[Tensor, Tensor]


class Agent(nn.Module):
    """Frames [T*B, 1, 84, 84] and starts [T*B] to scores of actions, values, and states."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(512, 128)
        self.actor, self.critic = nn.Linear(128, _ACTIONS), nn.Linear(128, 1)

    def forward(
        self, frames: Tensor, states: States, starts: Tensor
    ) -> tuple[Tensor, Tensor, States]:
        """The scores, the values, and the states after the last step."""
        batch = states[0].shape[1]
        features = self.network(frames).reshape(-1, batch, 512)
        hidden, states = self.remember(features, states, starts.reshape(-1, batch))
        hidden = hidden.flatten(0, 1)
        return self.actor(hidden), self.critic(hidden).flatten(), states

    def remember(self, features: Tensor, states: States, starts: Tensor) -> tuple[Tensor, States]:
        """The LSTM over features [T, B, 512], step by step."""
        outputs = []
        for feature, start in zip(features, starts, strict=True):
            kept = (1.0 - start).view(1, -1, 1)
            output, states = self.lstm(feature[None], (kept * states[0], kept * states[1]))
            outputs.append(output)
        return torch.cat(outputs), states


def _play(dtype: torch.dtype) -> tuple[Tensor, Tensor, States]:
    """Frames, starts of episodes, and states of zeros."""
    generator = torch.Generator().manual_seed(1)
    rows = _STEPS * _ENVIRONMENTS
    frames = torch.rand(rows, 1, 84, 84, generator=generator).to(dtype)
    starts = (torch.rand(rows, generator=generator) < 0.05).to(dtype)
    zeros = torch.zeros(1, _ENVIRONMENTS, 128, dtype=dtype)
    return frames, starts, (zeros, zeros)


def inference(model: nn.Module, dtype: torch.dtype):
    """A rollout, a call for each step."""
    frames, starts, zeros = _play(dtype)

    def call() -> list[Tensor]:
        found, states = [], zeros
        steps = frames.split(_ENVIRONMENTS), starts.split(_ENVIRONMENTS)
        for seen, start in zip(*steps, strict=True):
            scores, values, states = model(seen, states, start)
            found += [scores, values]
        return [*found, *states]

    return call


def training(model: nn.Module, dtype: torch.dtype):
    """One update with all rows."""
    frames, starts, zeros = _play(dtype)
    generator = torch.Generator().manual_seed(2)
    rows = len(frames)
    actions = torch.randint(0, _ACTIONS, (rows, 1), generator=generator)
    advantages, returns = torch.randn(2, rows, generator=generator).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 2.5e-4, eps=1e-5)

    def step() -> Tensor:
        scores, values, _ = model(frames, zeros, starts)
        chances = scores.log_softmax(-1)
        ratios = (chances.gather(1, actions)[:, 0] + torch.log(torch.tensor(_ACTIONS))).exp()
        policy = torch.max(-advantages * ratios, -advantages * ratios.clamp(0.9, 1.1)).mean()
        entropy = -(chances.exp() * chances).sum(-1).mean()
        loss = policy - 0.01 * entropy + 0.25 * (values - returns).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="PPO with an LSTM, Atari",
    recurrent="LSTM(512, 128)",
    call=f"{_STEPS} steps of B={_ENVIRONMENTS}, T=1, in rollout and update",
    source="rebuilt at the sizes of CleanRL's ppo_atari_lstm; random weights and frames",
    remark="Convolutions take most of the time.",
    build=Agent,
    inference=inference,
    training=training,
)
