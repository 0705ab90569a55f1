"""The calls on which torch's own operators are as fast as compiled CPU kernels, or faster.

A compiled layer gains by what it does between the products of two steps, and by weights that it
packs once for many rows. Where there is one step, or one row in a few steps, and the weights are
too large for a core's cache, a call is bound by reading them once a step. Torch's products read
them as they lie; the kernels have to transpose them (see `rnnjit_numba.direct`).
"""

from __future__ import annotations

import torch

from rnnjit.spec import Problem, RNNSpec

#: Bytes of a layer's weights in one direction from which on reading them, and writing their
#: gradients, takes most of a training call of one row.
_LARGE = 1 << 20
#: The same of other calls.
_HUGE = 4 << 20
#: Rows of one step for which the kernels read weights in place, which is as fast as torch's
#: products; a backward pass does so for more of them (see the backends' plans).
_FORWARD_ROWS, _TRAINING_ROWS = 4, 16
#: Steps of one row up to which packing the weights takes longer than it saves on one thread. On
#: several, the kernels divide the weights between them, and torch's product with a vector does not.
_FEW_STEPS = 4
#: Rows of a single feature from which on a training call, or a forward pass, is left to torch: a
#: vector of the kernels holds one element of each row in the products and the sums over all rows.
_NARROW_TRAINING, _NARROW_FORWARD = 1 << 10, 1 << 14


def why_torch(spec: RNNSpec, problem: Problem) -> list[str]:
    """Why `auto` should leave a call to torch's operators; empty if it should not.

    The answer depends on T and B by their powers of two alone, see `Backend.sizes_matter`. Cells
    that torch has no operator for are not left to it: it would run one operation after the other.
    """
    if not spec.cell.is_built_in:
        return []
    steps, rows, trains = problem.T, problem.B, problem.needs_grad
    inputs = max(spec.input_size, spec.hidden_size if spec.num_layers > 1 else 0)
    width = len(spec.cell.gates) * spec.hidden_size
    size = problem.dtype.itemsize * width * (inputs + spec.hidden_size)
    weights = f"{size / 1e6:.0f} MB of weights in a direction of a layer"
    alone = size >= _HUGE and steps <= _FEW_STEPS and torch.get_num_threads() == 1
    if rows == 1 and ((size >= _LARGE and steps == 1) if trains else alone):
        return [f"a few steps of one row are bound by reading {weights}"]
    if size >= _HUGE and steps == 1 and rows > (_TRAINING_ROWS if trains else _FORWARD_ROWS):
        return [f"a single step is two products for each layer, with {weights}"]
    if spec.hidden_size == 1 and rows > (_NARROW_TRAINING if trains else _NARROW_FORWARD):
        return ["a single hidden feature leaves most of a vector empty"]
    return []
