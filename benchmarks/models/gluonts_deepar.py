"""DeepAR of GluonTS: an nn.LSTM that forecasts by drawing samples, step after step.

Salinas et al., "DeepAR: probabilistic forecasting with autoregressive recurrent networks", 2017:
hourly series, 24 steps ahead, the estimator's own size LSTM(46, 40, 2 layers). Each of 32 series is
continued by 100 samples, of which a step is a call with T=1, B=3200 and the states in a list.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SERIES = 32


def build() -> nn.Module:
    """The estimator's module."""
    from gluonts.torch import DeepAREstimator

    estimator = DeepAREstimator(
        freq="h", prediction_length=24, num_feat_static_cat=1, cardinality=[_SERIES]
    )
    module: nn.Module = estimator.create_lightning_module()
    return module


def _batch(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    network = model.model
    past, future = network._past_length, network.prediction_length
    hours = torch.arange(past + future)
    target = 10 + torch.randn(_SERIES, past + future, generator=generator)
    target = target + 5 * torch.sin(hours * torch.pi / 12)
    features = torch.rand(
        _SERIES, past + future, network.num_feat_dynamic_real, generator=generator
    )
    found = {
        "feat_static_cat": torch.arange(_SERIES)[:, None],
        "feat_static_real": torch.zeros(_SERIES, 1),
        "past_time_feat": features[:, :past],
        "past_target": target[:, :past],
        "past_observed_values": torch.ones(_SERIES, past),
        "future_time_feat": features[:, past:],
        "future_target": target[:, past:],
        "future_observed_values": torch.ones(_SERIES, future),
    }
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in found.items()
    }


def inference(model: Any, dtype: torch.dtype):
    """100 samples of the next 24 hours of each series, from the same seed in every call."""
    batch = _batch(model, dtype)
    given = {name: value for name, value in batch.items() if name in model.inputs}

    def call() -> Tensor:
        torch.manual_seed(3)
        samples: Tensor = model(**given)
        return samples

    return call


def training(model: Any, dtype: torch.dtype):
    """One step of Adam, clipped as the estimator does."""
    batch = _batch(model, dtype)
    model.log = lambda *_, **__: None  # without a trainer
    optimizer = torch.optim.Adam(model.parameters(), model.lr, weight_decay=model.weight_decay)

    def step() -> Tensor:
        loss: Tensor = model.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="GluonTS DeepAR",
    recurrent="LSTM(46, 40, 2 layers), dropout 0.1",
    remark="Decoding is a step a call, beside as much Python and sampling.",
    call="B=32, T=24, batch_first; then 23 steps of B=3200, T=1, states in a list",
    source="gluonts 0.17.0, DeepAREstimator with its own sizes; random weights",
    requires=("gluonts==0.17.0", "lightning==2.6.6"),
    build=build,
    inference=inference,
    training=training,
    inexact="its samples and dropout are drawn in the dtype of the model",
)
