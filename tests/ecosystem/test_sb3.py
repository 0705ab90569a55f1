"""Protects sb3-contrib's recurrent PPO: a compiled policy trains as an eager one does."""

import pytest
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.logger import KVWriter, Logger
from torch import nn

import rnnjit
from rnnjit.frontend.compiled_base import CompiledBase

HIDDEN, STEPS = 24, 64
# The losses of float32, whose rounding a policy's own experience carries on.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
# Dynamo warns of torch's own deprecations when it is first imported, and of what it looks at.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.:DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)


class Kept(KVWriter):
    """Keeps what the algorithm logs of each update."""

    def __init__(self):
        self.updates = []

    def write(self, key_values, key_excluded, step=0):
        found = {name: float(v) for name, v in key_values.items() if name.startswith("train/")}
        self.updates += [found] if found else []

    def close(self):
        pass


def learner(**policy):
    policy = {"lstm_hidden_size": HIDDEN, "net_arch": [16], **policy}
    return RecurrentPPO(
        "MlpLstmPolicy",
        "CartPole-v1",
        n_steps=STEPS,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=policy,
    )


def learnt(algorithm, total):
    """The losses of each update but the last, and the weights after it."""
    kept = Kept()
    algorithm.set_logger(Logger(None, [kept]))
    algorithm.set_random_seed(0)
    algorithm.learn(total)
    return kept.updates, algorithm.policy.state_dict()


@pytest.mark.parametrize(
    ("policy", "total"),
    [
        ({}, 512),
        pytest.param({}, 2048, marks=pytest.mark.full),
        pytest.param({"n_lstm_layers": 2}, 1024, marks=pytest.mark.full),
        pytest.param(
            {"shared_lstm": True, "enable_critic_lstm": False}, 1024, marks=pytest.mark.full
        ),
    ],
    ids=["short", "long", "stacked", "shared"],
)
def test_a_compiled_policy_learns_as_an_eager_one(policy, total):
    """The optimizer was made of the policy before: its Parameters are those of the compiled one."""
    eager, fast = learner(**policy), learner(**policy)
    fast.policy = rnnjit.compile(fast.policy)
    assert isinstance(fast.policy.lstm_actor, CompiledBase)
    assert isinstance(fast.policy.lstm_actor, nn.LSTM)
    before = learner(**policy).policy.state_dict()
    (expected, weights), (found, ours) = learnt(eager, total), learnt(fast, total)
    assert len(found) == total // STEPS - 1
    for update, wanted in zip(found, expected, strict=True):
        assert update == pytest.approx(wanted, rel=CLOSE["rtol"], abs=CLOSE["atol"], nan_ok=True)
    torch.testing.assert_close(dict(ours), dict(weights), **CLOSE)
    assert all(not torch.equal(weight, before[name]) for name, weight in ours.items())


def test_one_saved_compiled_loads_into_an_eager_one(tmp_path):
    fast = learner()
    fast.policy = rnnjit.compile(fast.policy)
    fast.learn(STEPS)
    fast.save(tmp_path / "policy.zip")
    loaded = RecurrentPPO.load(tmp_path / "policy.zip", device="cpu")
    assert type(loaded.policy.lstm_actor) is nn.LSTM
    observation = fast.get_env().reset()
    expected, state = loaded.predict(observation, deterministic=True)
    got, ours = fast.predict(observation, deterministic=True)
    assert got == expected
    for found, wanted in zip(ours, state, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


class Network(nn.Module):
    """What a policy computes of a stretch without a new episode, but for the choice of actions."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observations, states):
        policy, steps = self.policy, observations.flatten(0, 1)
        x = policy.extract_features(steps).view(*observations.shape[:2], -1)
        actor, last_actor = policy.lstm_actor(x, states.pi)
        critic, last_critic = policy.lstm_critic(x, states.vf)
        logits = policy.action_net(policy.mlp_extractor.forward_actor(actor))
        values = policy.value_net(policy.mlp_extractor.forward_critic(critic))
        return logits, values, RNNStates(last_actor, last_critic)


def states(batch):
    h, c = torch.randn(2, 1, batch, HIDDEN)
    return RNNStates((h, c), (c.tanh(), h))


def test_a_compiled_policys_network_traces_as_one_graph():
    torch._dynamo.reset()
    policy = learner().policy
    given = torch.randn(6, 3, 4), states(3)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(Network(policy), backend="aot_eager", fullgraph=True)(*given)
    traced = torch.compile(Network(rnnjit.compile(policy)), backend="aot_eager", fullgraph=True)
    results = []
    for network in (Network(policy), traced):
        logits, values, last = network(*given)
        loss = logits.square().sum() + values.sum() + last.pi[1].sum()
        weights = [*policy.lstm_actor.parameters(), *policy.lstm_critic.parameters()]
        results.append((logits, values, last, torch.autograd.grad(loss, weights)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_a_whole_compiled_policy_traces_but_for_its_own_branch_on_new_episodes():
    torch._dynamo.reset()
    policy = learner().policy
    given = torch.randn(3, 4), states(3), torch.zeros(3), True
    traced = torch.compile(rnnjit.compile(policy), backend="aot_eager")
    torch.testing.assert_close(traced(*given), policy(*given), rtol=1e-4, atol=1e-5)
