"""Rainfall to runoff: the CudaLSTM of NeuralHydrology, from a year of weather to a day's discharge.

Kratzert et al., "Towards learning universal, regional, and local hydrological behaviors via
machine learning applied to large-sample datasets", 2019: 32 features, 256 units, 365 days; a batch
of 64 for the paper's 256. x is a transposed tensor, and the bias of the forget gate is set through
`.data`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models import ModelCase

_FORCINGS, _ATTRIBUTES, _DAYS, _BATCH = 5, 27, 365, 64


def build() -> nn.Module:
    """The package's model, in a run's configuration."""
    from neuralhydrology.modelzoo.cudalstm import CudaLSTM
    from neuralhydrology.utils.config import Config

    model: nn.Module = CudaLSTM(
        Config(
            {
                "model": "cudalstm",
                "head": "regression",
                "hidden_size": 256,
                "initial_forget_bias": 3,
                "output_dropout": 0.4,
                "output_activation": "linear",
                "dynamic_inputs": [f"forcing{i}" for i in range(_FORCINGS)],
                "static_attributes": [f"attribute{i}" for i in range(_ATTRIBUTES)],
                "target_variables": ["discharge"],
                "seq_length": _DAYS,
                "predict_last_n": 1,
            }
        )
    )
    return model


def _basins(dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    forcings = torch.randn(_FORCINGS, _BATCH, _DAYS, 1, generator=generator).to(dtype)
    return {
        "x_d": {f"forcing{i}": forcing for i, forcing in enumerate(forcings)},
        "x_s": torch.randn(_BATCH, _ATTRIBUTES, generator=generator).to(dtype),
    }


def inference(model: Any, dtype: torch.dtype):
    """The last day's discharge of a batch."""
    data = _basins(dtype)
    return lambda: model(data)["y_hat"][:, -1]


def training(model: Any, dtype: torch.dtype):
    """One step of Adam on the last day."""
    data = _basins(dtype)
    truth = data["x_d"]["forcing0"].mean(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> Tensor:
        loss = nn.functional.mse_loss(model(data)["y_hat"][:, -1], truth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


CASE = ModelCase(
    name="NeuralHydrology CudaLSTM",
    recurrent="LSTM(32, 256)",
    remark="Dense nn.LSTM is oneDNN's in eager, near the machine's peak.",
    call=f"B={_BATCH}, T={_DAYS}, a transposed x; the loss on the last step alone",
    source="neuralhydrology 1.13.0 at the sizes of Kratzert et al. 2019, B=64; random weights",
    requires=("neuralhydrology==1.13.0",),
    build=build,
    inference=inference,
    training=training,
    inexact="dropout is drawn in the dtype of the model",
    steps=2,
)
