"""The GRU of neuralforecast: an encoder of past values, and an MLP that forecasts from its outputs.

Its own size, GRU(1, 128, 2 layers), on 96 hours of 32 series, 24 ahead. A step of `fit` trains on
128 windows; `predict` is one call for all series.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SERIES, _LENGTH = 32, 400


def build() -> nn.Module:
    """The package's model."""
    from neuralforecast.models import GRU

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    model: nn.Module = GRU(h=24, input_size=96, **quiet)
    return model


def _dataset() -> Any:
    import pandas
    from neuralforecast.tsdataset import TimeSeriesDataset

    generator = torch.Generator().manual_seed(1)
    hours = torch.arange(_LENGTH)
    values = torch.randn(_SERIES, _LENGTH, generator=generator) + 5 * torch.sin(hours / 4)
    frame = pandas.DataFrame(
        {
            "unique_id": torch.arange(_SERIES).repeat_interleave(_LENGTH).numpy(),
            "ds": pandas.date_range("2000-01-01", periods=_LENGTH, freq="h").to_list() * _SERIES,
            "y": (values + 10).flatten().numpy(),
        }
    )
    return TimeSeriesDataset.from_df(frame)[0]


def inference(model: Any, dtype: torch.dtype):
    """A forecast of every series."""
    dataset = _dataset()
    return lambda: torch.from_numpy(model.predict(dataset))


def training(model: Any, dtype: torch.dtype):
    """One step on 128 windows."""
    from neuralforecast.tsdataset import TimeSeriesLoader

    (batch,) = TimeSeriesLoader(_dataset(), batch_size=_SERIES)
    optimizer = model.configure_optimizers()["optimizer"]
    model.log = lambda *_, **__: None  # without a trainer

    def step() -> Tensor:
        loss: Tensor = model.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="neuralforecast GRU",
    recurrent="GRU(1, 128, 2 layers)",
    remark="nn.GRU, which eager computes step by step.",
    call="B=128, T=96 in training, B=32 in inference, batch_first",
    source="neuralforecast 3.3.0 with its own sizes; random weights",
    requires=("neuralforecast==3.3.0",),
    build=build,
    inference=inference,
    training=training,
    inexact="the package casts its data to float32",
)
