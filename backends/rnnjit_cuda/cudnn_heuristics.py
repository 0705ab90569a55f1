"""Where cuDNN, which PyTorch's own nn.RNN runs on, is as quick: as measured on an H200."""

from __future__ import annotations

import torch

from rnnjit import Problem, RNNSpec
from rnnjit.cells import RNN_RELU, RNN_TANH

#: The cells that are computed here and by cuDNN too.
_CELLS = (RNN_TANH, RNN_RELU)

#: The hidden sizes for which cuDNN has a persistent kernel both ways, for dense float32. Stacks and
#: two directions were not measured.
_PERSISTENT = 256
#: H^2 by the mean number of a step's rows, from which on its product takes longer than all around
#: it: cuDNN's runs on tensor cores where a dtype has them, float32 as TF32 unless PyTorch is told
#: otherwise.
_LARGE = {
    torch.float32: 2**27,
    torch.float64: 2**26,
    torch.bfloat16: 2**28,
    torch.float16: 2**28,
}


def reasons(spec: RNNSpec, problem: Problem) -> list[str]:
    """Why a call had better be left to cuDNN; empty if not."""
    if spec.cell not in _CELLS:
        return []
    H, found = spec.hidden_size, []
    alone = spec.num_layers == 1 and not spec.bidirectional
    if problem.dtype is torch.float32 and not problem.packed and alone and H <= _PERSISTENT:
        found.append(
            f"cuDNN too keeps the weights of one dense float32 layer of up to {_PERSISTENT} hidden "
            "units on the chip, and PyTorch calls it with less overhead"
        )
    limit = _LARGE.get(problem.dtype)
    products = problem.N * H * H // max(problem.T, 1)
    if limit is not None and products >= limit:
        found.append(
            f"its matrix products dominate ({products:,} multiply-adds a step, of {limit:,} on), "
            "and those of cuDNN are quicker"
        )
    return found
