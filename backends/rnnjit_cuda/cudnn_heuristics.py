"""Where cuDNN, which PyTorch's own layers run on, is as fast: measured on an H200 for nn.RNN."""

from __future__ import annotations

import torch

from rnnjit import Problem, RNNSpec
from rnnjit.ir import RNN_RELU, RNN_TANH
from rnnjit.reference import has_operator

#: The cells of cuDNN's that were measured.
_CELLS = (RNN_TANH, RNN_RELU)

#: Up to this hidden size cuDNN has persistent kernels for dense float32, forward and backward.
#: Stacks and two directions were not measured.
_PERSISTENT = 256
#: H^2 times the mean number of rows of a step, from which on its matrix product takes longer than
#: the rest of it. cuDNN's product runs on tensor cores if they have the dtype, float32 as TF32
#: unless PyTorch is set otherwise.
_LARGE = {
    torch.float32: 2**27,
    torch.float64: 2**26,
    torch.bfloat16: 2**28,
    torch.float16: 2**28,
}


def reasons(spec: RNNSpec, problem: Problem) -> list[str]:
    """Why a call should be left to cuDNN; empty if it should not."""
    if spec.cell not in _CELLS:
        if not has_operator(spec.layer(0)):
            return []
        return [f"layers of cell {spec.cell.name!r} have not been measured against cuDNN's"]
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
            f"its matrix products dominate ({products:,} multiply-adds a step; limit {limit:,}), "
            "and those of cuDNN are faster"
        )
    return found
