"""Recurrent PPO of sb3-contrib: the policy with an nn.LSTM each for actor and critic.

Two LSTM(4, 256), the package's own size, on CartPole. The rollout
calls the policy once a step; the update calls it with T=1, too, wherever an episode starts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_ENVIRONMENTS, _STEPS = 8, 100


def _learner() -> Any:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    environment = make_vec_env("CartPole-v1", _ENVIRONMENTS, seed=1)
    return RecurrentPPO(
        "MlpLstmPolicy", environment, n_steps=_STEPS, n_epochs=2, seed=1, device="cpu"
    )


def build() -> nn.Module:
    """The policy, which holds its optimizer."""
    policy: nn.Module = _learner().policy
    return policy


def inference(model: Any, dtype: torch.dtype):
    """Act for some steps."""
    environment = _learner().get_env()

    def call() -> Tensor:
        environment.seed(1)
        observation, states = environment.reset(), None
        starts = torch.ones(_ENVIRONMENTS).bool().numpy()
        for _ in range(_STEPS):
            actions, states = model.predict(observation, states, starts, deterministic=True)
            observation, _, starts, _ = environment.step(actions)
        return torch.stack([torch.from_numpy(state) for state in states])

    return call


def training(model: Any, dtype: torch.dtype):
    """Play, and learn from it."""
    learner = _learner()
    learner.policy = model
    learner.set_random_seed(2)
    learner._setup_learn(_STEPS * _ENVIRONMENTS)

    def step() -> Tensor:
        learner.learn(_STEPS * _ENVIRONMENTS)
        return torch.tensor(learner.logger.name_to_value["train/loss"])

    return step


CASE = ModelCase(
    name="sb3-contrib RecurrentPPO",
    recurrent="2 x LSTM(4, 256)",
    call=f"{_STEPS} steps of B={_ENVIRONMENTS}, T=1; the update, too, if an episode starts",
    source="sb3-contrib 2.9.2, MlpLstmPolicy with its own sizes; random weights",
    requires=("sb3-contrib==2.9.2",),
    remark="The rollout's environment and Python take most of acting; the update gains.",
    build=build,
    inference=inference,
    training=training,
    inexact="sb3 casts observations to float32",
    steps=2,
)
