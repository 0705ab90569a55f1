"""The recurrent network of pytorch-forecasting, with its GRU, a subclass of nn.GRU.

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
    from pytorch_forecasting import RecurrentNetwork

    model: nn.Module = RecurrentNetwork.from_dataset(_dataset(), cell_type="GRU", hidden_size=64)
    return model


def inference(model: Any, dtype: torch.dtype):
    """A forecast of each series, step by step."""
    x, _ = _batch(dtype)

    def call() -> Tensor:
        torch.manual_seed(3)
        forecast: Tensor = model(x).prediction
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
    name="pytorch-forecasting RecurrentNetwork",
    recurrent="GRU(2, 64, 2 layers), dropout 0.1",
    remark="nn.GRU, which eager computes step by step.",
    call="B=64, T<=48, packed; then 24 steps of T=1",
    source="pytorch-forecasting 1.8.0, 64 units; random weights",
    requires=("pytorch-forecasting==1.8.0",),
    build=build,
    inference=inference,
    training=training,
    inexact="dropout is drawn in the dtype of the model",
)
