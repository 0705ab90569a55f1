"""A named range for each layer in torch's profilers, and no cost where none is running."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.autograd import profiler

from rnnjit.backend import Backend


def profiling() -> bool:
    """Whether one of torch's profilers is running, in any thread.

    Never while torch.compile traces: its graphs name the layers by their operator.
    """
    # The flag that torch keeps for its own Python code: an attribute, where asking the profiler
    # itself takes a call for which a streaming step has no time.
    return not torch.compiler.is_compiling() and profiler._is_profiler_enabled


def layer_range(backend: Backend, index: int) -> AbstractContextManager[object]:
    """A range called `rnnjit: layer 0 on numba`, say, around a layer's forward pass."""
    return profiler.record_function(f"rnnjit: layer {index} on {backend.name}")
