"""DeepAR of pytorch-forecasting: an LSTM of variable lengths that draws samples step by step.

Series may be shorter than the past that is asked for: the package's LSTM, a subclass of nn.LSTM,
packs them and takes lengths of 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_SERIES, _LENGTH, _BATCH = 16, 200, 64


def _dataset() -> Any:
    """Hourly series: 24 steps ahead, from a past of 1 to 48."""
    import pandas
    from pytorch_forecasting import GroupNormalizer, TimeSeriesDataSet

    generator = torch.Generator().manual_seed(1)
    hours = torch.arange(_LENGTH)
    values = torch.randn(_SERIES, _LENGTH, generator=generator) + 5 * torch.sin(hours / 4)
    frame = pandas.DataFrame(
        {
            "series": torch.arange(_SERIES).repeat_interleave(_LENGTH).numpy().astype(str),
            "hour": hours.repeat(_SERIES).numpy(),
            "value": (values + 10).flatten().numpy(),
        }
    )
    return TimeSeriesDataSet(
        frame,
        time_idx="hour",
        target="value",
        group_ids=["series"],
        static_categoricals=["series"],
        time_varying_known_reals=["hour"],
        time_varying_unknown_reals=["value"],
        min_encoder_length=1,
        max_encoder_length=48,
        min_prediction_length=24,
        max_prediction_length=24,
        target_normalizer=GroupNormalizer(groups=["series"]),
    )


def _batch(dtype: torch.dtype) -> Any:
    loader = _dataset().to_dataloader(train=True, batch_size=_BATCH, num_workers=0)
    torch.manual_seed(2)
    x, y = next(iter(loader))
    cast = {name: v.to(dtype) if v.is_floating_point() else v for name, v in x.items()}
    return cast, (y[0].to(dtype), y[1])


def build() -> nn.Module:
    """The package's model."""
    from pytorch_forecasting import DeepAR

    model: nn.Module = DeepAR.from_dataset(_dataset(), hidden_size=40)
    return model


def inference(model: Any, dtype: torch.dtype):
    """100 samples of the next 24 hours of each series."""
    x, _ = _batch(dtype)

    def call() -> Tensor:
        torch.manual_seed(3)
        forecast: Tensor = model(x, n_samples=100).prediction
        return forecast

    return call


def training(model: Any, dtype: torch.dtype):
    """One step of Adam."""
    x, y = _batch(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss: Tensor = model.loss(model(x).prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="pytorch-forecasting DeepAR",
    recurrent="LSTM(3, 40, 2 layers), dropout 0.1",
    remark="Dense nn.LSTM is oneDNN's in eager; decoding is a step a call.",
    call="B=64, T<=48, packed; then 24 steps of B=6400, T=1",
    source="pytorch-forecasting 1.8.0, 40 units as in the paper; random weights",
    requires=("pytorch-forecasting==1.8.0",),
    build=build,
    inference=inference,
    training=training,
    inexact="its samples and dropout are drawn in the dtype of the model",
)
