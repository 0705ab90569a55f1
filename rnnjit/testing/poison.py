"""Makes memory that nobody wrote recognisable: it reads as NaN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils import deterministic


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it, what torch allocates is filled with NaN, and the heap is littered with NaN.

    Torch fills every `empty` it makes while deterministic algorithms are asked for. Memory that a
    backend takes from elsewhere is beyond torch's reach: freed blocks full of NaN make it likely
    that reading it before writing it is noticed too.
    """
    mode = torch.get_deterministic_debug_mode()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # set on its class
    with warnings.catch_warnings():
        # Asked for only to have memory filled: an operation that has no deterministic form may run.
        for said in (
            "does not have a deterministic implementation",
            "is not deterministic because",
        ):
            warnings.filterwarnings("ignore", message=f".*{said}")
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # as above
            _litter()
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]  # as above


def _litter() -> None:
    blocks = [np.full(2**power, np.nan) for power in range(4, 14) for _ in range(4)]
    del blocks
