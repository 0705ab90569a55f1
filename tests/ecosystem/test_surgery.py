"""Protects weights that torch's tools make, share, mask, freeze or swap, in training."""

import warnings

import pytest
import torch
from eager_pair import CLOSE
from layer_kinds import states
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from trained_pair import assert_trains_alike, batch, train

from rnnjit.frontend.compiled_class import compiled_class


def weight_normed(model):
    parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    parametrizations.weight_norm(model.rnn, "weight_ih_l1_reverse", dim=1)


def spectral_normed(model):
    parametrizations.spectral_norm(model.rnn, "weight_hh_l0", n_power_iterations=2)
    parametrizations.spectral_norm(model.other, "weight_hh_l0")


def orthogonal(model):
    for map_name in ("matrix_exp", "cayley", "householder"):
        name = {"matrix_exp": "l0", "cayley": "l0_reverse", "householder": "l1"}[map_name]
        parametrizations.orthogonal(
            model.rnn, f"weight_hh_{name}", map_name, use_trivialization=False
        )


def low_rank_adapted(model):
    class Adapter(nn.Module):
        def __init__(self, rows, columns):
            super().__init__()
            self.down = nn.Parameter(torch.randn(2, columns, dtype=torch.float64) * 0.1)
            self.up = nn.Parameter(torch.randn(rows, 2, dtype=torch.float64) * 0.1)

        def forward(self, weight):
            return weight + self.up @ self.down

    model.requires_grad_(False)
    for name in ("weight_ih_l0", "weight_hh_l1"):
        parametrize.register_parametrization(
            model.rnn, name, Adapter(*getattr(model.rnn, name).shape)
        )
        model.rnn.parametrizations[name].original.requires_grad_(False)


def pruned_by_size(model):
    prune.l1_unstructured(model.rnn, "weight_hh_l0", amount=0.5)
    prune.ln_structured(model.rnn, "weight_ih_l1", amount=2, n=2, dim=0)
    prune.random_unstructured(model.rnn, "weight_hh_l1", amount=0.3)
    prune.l1_unstructured(model.rnn, "weight_hh_l0", amount=0.2)


def pruned_over_all(model):
    chosen = [
        (model.rnn, "weight_hh_l0"),
        (model.rnn, "weight_hh_l1"),
        (model.other, "weight_hh_l0"),
    ]
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=0.4)


def pruned_for_good(model):
    pruned_by_size(model)
    for name in ("weight_hh_l0", "weight_ih_l1", "weight_hh_l1"):
        prune.remove(model.rnn, name)


def tied_layers_and_modules(model):
    model.rnn.weight_hh_l1 = model.rnn.weight_hh_l0
    model.rnn.weight_hh_l1_reverse = model.rnn.weight_hh_l0_reverse
    model.other.weight_hh_l0 = model.rnn.weight_hh_l0
    model.other.bias_ih_l0 = model.rnn.bias_ih_l0


def partly_frozen(model):
    model.rnn.weight_hh_l0.requires_grad_(False)
    model.rnn.bias_ih_l1_reverse.requires_grad_(False)
    if model.rnn.proj_size:
        model.rnn.weight_hr_l0.requires_grad_(False)
    model.other.requires_grad_(False)


def initialised_anew(model):
    for name, parameter in model.rnn.named_parameters():
        if "weight_hh" in name:
            nn.init.orthogonal_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)


SURGERIES = [
    weight_normed,
    orthogonal,
    low_rank_adapted,
    pruned_by_size,
    pruned_over_all,
    pruned_for_good,
    tied_layers_and_modules,
    partly_frozen,
    initialised_anew,
]


@pytest.mark.parametrize("surgery", SURGERIES, ids=lambda f: f.__name__)
def test_training_after_surgery(operated, surgery):
    assert_trains_alike(operated(surgery))


def test_spectral_norm(operated):
    """Every look at the weight moves its estimate on, and eager looks twice where one is enough."""
    assert_trains_alike(operated(spectral_normed), around=parametrize.cached)


def test_a_parametrized_weight_is_computed_once_a_call(operated):
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight

    counting = Counting()

    def counted(model):
        parametrize.register_parametrization(model.other, "weight_hh_l0", counting)

    _, fast = operated(counted)
    for _ in range(2):
        before = counting.calls
        fast(batch(0))
        assert counting.calls == before + 1


def test_parametrizations_removed_after_training(operated):
    eager, fast = operated(weight_normed)
    for model in (eager, fast):
        train(model)
        for name in list(model.rnn.parametrizations):
            parametrize.remove_parametrizations(model.rnn, name)
        model.train()
    assert type(fast.rnn) is compiled_class(type(eager.rnn))
    assert_trains_alike((eager, fast))


def test_the_older_norms_by_hooks(operated):
    """They set a plain tensor as the weight before each call; torch itself deprecates them."""

    def normed(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(model.rnn, "weight_hh_l0")
            nn.utils.spectral_norm(model.other, "weight_hh_l0")

    assert_trains_alike(operated(normed))


def test_weights_dropped_by_assignment(operated):
    """DropConnect as AWD-LSTM has it: a plain tensor in the parameter's place at every call."""

    def dropped(model):
        raw = model.rnn.weight_hh_l0
        del model.rnn._parameters["weight_hh_l0"]
        model.rnn.register_parameter("weight_hh_l0_raw", raw)

        def drop(rnn, args):
            kept = nn.functional.dropout(rnn.weight_hh_l0_raw, 0.5, training=rnn.training)
            rnn.weight_hh_l0 = kept

        model.rnn.register_forward_pre_hook(drop)

    assert_trains_alike(operated(dropped))


def test_parametrized_weights_of_packed_input(operated):
    eager, fast = operated(weight_normed)
    given = pack_padded_sequence(batch(0), [5, 3, 3, 1])

    def gradients(model):
        y, last = model.rnn(given)
        loss = y.data.sin().sum() + sum(state.sum() for state in states(last))
        return torch.autograd.grad(loss, list(model.rnn.parameters()))

    torch.testing.assert_close(gradients(fast), gradients(eager), **CLOSE)
