"""Protects weights that are clipped, averaged, swapped or given for one call, in training."""

import warnings

import pytest
import torch
from eager_pair import CLOSE
from torch import nn
from torch.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    parameters_to_vector,
    stateless,
    vector_to_parameters,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from trained_pair import assert_trains_alike, batch, train


def nothing(model):
    pass


CLIPPED = {
    "norm": lambda m: clip_grad_norm_(m.parameters(), 0.5, error_if_nonfinite=True),
    "infinity norm": lambda m: clip_grad_norm_(m.parameters(), 0.1, norm_type=float("inf")),
    "values": lambda m: clip_grad_value_(m.parameters(), 0.05),
}


@pytest.mark.parametrize("clip", CLIPPED.values(), ids=CLIPPED)
def test_clipped_gradients(operated, clip):
    assert_trains_alike(operated(nothing), between=clip)


def tied(model):
    model.rnn.weight_hh_l1 = model.rnn.weight_hh_l0
    model.other.bias_ih_l0 = model.rnn.bias_ih_l0


def test_averaged_models(operated):
    def averaged(model):
        kinds = [AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))]
        found = list(train(model, lambda m: [kind.update_parameters(m) for kind in kinds]))
        for kind in kinds:
            update_bn([batch(20), batch(21)], kind)
            found += [*kind.eval()(batch(22)), *(p.detach() for p in kind.parameters())]
        return found

    eager, fast = operated(nothing)
    torch.testing.assert_close(averaged(fast), averaged(eager), **CLOSE)


def test_swapped_tensors(operated):
    """`swap_tensors` exchanges what two tensors are, and conversions may go by it."""
    eager, fast = operated(nothing)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for model in (eager, fast):
            train(model)
            model.train()
            held = model.rnn.weight_hh_l0
            model.zero_grad()
            model.float().double()
            assert model.rnn.weight_hh_l0 is held
            new = nn.Parameter(torch.full_like(held, 0.125))
            model.rnn._flat_weight_refs = []  # what has weak references cannot be swapped
            torch.utils.swap_tensors(held, new)
            model.rnn._init_flat_weights()
            assert model.rnn.weight_hh_l0 is held
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert (fast.rnn.weight_hh_l0 == 0.125).all()
    assert_trains_alike((eager, fast))


@pytest.mark.parametrize("tie", [True, False])
def test_stateless_calls(operated, tie):
    eager, fast = operated(tied)
    others = {name: 0.5 * p.detach() for name, p in eager.named_parameters()}

    def call(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.func has it by now
            return stateless.functional_call(model, others, batch(0), tie_weights=tie)

    torch.testing.assert_close(call(fast), call(eager), **CLOSE)
    assert_trains_alike((eager, fast))


def test_parameters_as_one_vector(operated):
    eager, fast = operated(nothing)
    vector = parameters_to_vector(eager.parameters()).detach() * 0.5
    for model in (eager, fast):
        vector_to_parameters(vector.clone(), model.parameters())
    assert_trains_alike((eager, fast))
