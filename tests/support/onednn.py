"""oneDNN, where this processor has what torch asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache

import torch
from torch import nn


@lru_cache(maxsize=1)
def runs_bfloat16() -> bool:
    """Whether torch's own nn.LSTM runs under autocast with oneDNN.

    Where oneDNN has no LSTM of bfloat16 for a processor, such as those of AVX2 alone, torch raises.
    """
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError as error:
        if "primitive descriptor" not in str(error):
            raise
        return False
    return True


def switched(*, enabled: bool) -> AbstractContextManager[None]:
    """Torch's own layers have oneDNN at their disposal, or not.

    TF32 is left as it is: torch warns where it is set without an Intel GPU.
    """
    return torch.backends.mkldnn.flags(enabled=enabled, allow_tf32=None)


@contextmanager
def where_it_runs() -> Iterator[None]:
    """Torch's own layers do without oneDNN where it has no LSTM of bfloat16."""
    if runs_bfloat16():
        yield
        return
    with switched(enabled=False):
        yield
