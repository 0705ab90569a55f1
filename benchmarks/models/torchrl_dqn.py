"""Recurrent deep Q-learning of TorchRL: its LSTMModule between two networks, over TensorDicts.

As the package's tutorial does it, on CartPole's observations. A rollout calls the module once a
step, the loss on whole stretches, which the module cuts where an episode starts, and packs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_ROLLOUTS, _STEPS, _CELLS = 32, 64, 128


def _lstm() -> Any:
    from torchrl.modules import LSTMModule

    return LSTMModule(input_size=_CELLS, hidden_size=_CELLS, in_key="embed", out_key="embed")


def _environment() -> Any:
    from torchrl.envs import Compose, GymEnv, InitTracker, TransformedEnv

    primer = _lstm().make_tensordict_primer()
    environment = TransformedEnv(GymEnv("CartPole-v1"), Compose(InitTracker(), primer))
    environment.set_seed(1)
    return environment


def build() -> nn.Module:
    """The policy."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import MLP, QValueModule

    before = MLP(in_features=4, out_features=_CELLS, num_cells=[_CELLS])
    behind = MLP(in_features=_CELLS, out_features=2, num_cells=[_CELLS])
    policy: nn.Module = TensorDictSequential(
        TensorDictModule(before, in_keys=["observation"], out_keys=["embed"]),
        _lstm(),
        TensorDictModule(behind, in_keys=["embed"], out_keys=["action_value"]),
        QValueModule(action_space="one_hot"),
    )
    return policy


def inference(model: Any, dtype: torch.dtype):
    """Act for some steps, through new episodes."""
    environment = _environment()

    def call() -> Tensor:
        environment.set_seed(1)
        played = environment.rollout(_STEPS, model, break_when_any_done=False)
        values: Tensor = played["action_value"]
        return values

    return call


def training(model: Any, dtype: torch.dtype):
    """One step of Adam on stretches of random play."""
    from torchrl.modules import set_recurrent_mode
    from torchrl.objectives import DQNLoss

    environment = _environment()
    torch.manual_seed(2)
    played = [environment.rollout(_STEPS, break_when_any_done=False) for _ in range(_ROLLOUTS)]
    data = torch.stack(played).contiguous()
    loss_of = DQNLoss(model, action_space="one_hot", delay_value=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        with set_recurrent_mode(True):
            loss: Tensor = loss_of(data.clone())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="TorchRL recurrent DQN",
    recurrent="LSTM(128, 128)",
    remark="TensorDict's own Python takes most of a step of acting.",
    call=f"{_STEPS} steps of B=1, T=1; {_ROLLOUTS} stretches of {_STEPS} steps, cut and packed",
    source="torchrl 0.14.1, the sizes of its tutorial; gymnasium's environment; random weights",
    requires=("torchrl==0.14.1", "tensordict==0.14.3", "gymnasium==1.4.0"),
    build=build,
    inference=inference,
    training=training,
    inexact="the environment is in float32",
)
