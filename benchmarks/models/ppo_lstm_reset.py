"""PPO with an LSTM over Atari frames, where the compiled layer itself resets the states.

The model of `ppo_lstm.py`; compiled, its loop over single steps is one call with `reset`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

import rnnjit
from rnnjit.bench.models.case import load_case


def _compile(model: Any) -> Any:
    fast = rnnjit.compile(model)

    def remember(features: Tensor, states: Any, starts: Tensor) -> Any:
        return fast.lstm(features, states, reset=starts.bool())

    fast.remember = remember
    return fast


CASE = replace(
    load_case(Path(__file__).with_name("ppo_lstm.py")),
    name="PPO with an LSTM, Atari, reset=",
    remark="Convolutions take most of the time; the update is one call with reset=.",
    call="32 steps of B=8, T=1; the update one call with reset",
    compile=_compile,
)
