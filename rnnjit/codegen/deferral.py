"""The calls on which torch's own operators are as fast as compiled CPU kernels, or faster.

A compiled layer gains by what it does between the products of two steps, and by weights that it
packs once for many rows. Where there is one step, or one row in a few steps, and the weights are
too large for a core's cache, a call is bound by reading them once a step. Torch's products read
them as they lie; the kernels have to transpose them (see `rnnjit_numba.direct`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rnnjit.codegen.row_slices import THREAD_WORK
from rnnjit.single_step import has_primitive
from rnnjit.spec import Problem, RNNSpec

#: Bytes of a layer's weights in one direction from which on reading them, and writing their
#: gradients, takes most of a training call of one row.
_LARGE = 1 << 20
#: The same of other calls.
_HUGE = 4 << 20
#: The same of a step of one row of a layer without gradients.
_LAYER_STEP = 2 << 20
#: Multiply-adds of a Cell's call up to which recording a function of Python takes longer than it
#: saves: autograd records torch's operators without Python.
_RECORDED = 1 << 20
#: Bytes of weights that no cache holds.
_VAST = 16 << 20
#: Steps of one row up to which packing the weights takes longer than it saves on one thread. On
#: several, the kernels divide the weights between them, and torch's product with a vector does not.
_FEW_STEPS = 4
#: Rows of a single feature from which on a training call, or a forward pass, is left to torch: a
#: vector of the kernels holds one element of each row in the products and the sums over all rows.
_NARROW_TRAINING, _NARROW_FORWARD = 1 << 10, 1 << 14
#: Inputs of a single feature from which on the same holds of more than so many rows: nearly all of
#: the time is their product. A forward pass of four gates or more gains all the same.
_MANY_INPUTS, _NARROW_ROWS, _NARROW_GATES = 1 << 9, 1 << 5, 4


class _Limits(NamedTuple):
    """What depends on the vector unit: the more lanes, the more a transposition costs.

    Attributes:
        cell_step: bytes of weights from which on torch's operator of a Cell, which does no more
            than two products, is faster with one row.
        rows: rows of a step for which the kernels read weights in place, as fast as torch's
            products, on one thread and on several.
        vast_rows: the same of weights of `_VAST` bytes.
        training: bytes of weights from which on a training step of more than `_TRAINING_ROWS` rows
            is no faster than torch's.
        primitive_rows: rows of a training step up to which the kernels, which pack the weights, are
            faster than a primitive of oneDNN, which packs them, too.
    """

    cell_step: int
    rows: tuple[int, int]
    vast_rows: tuple[int, int]
    training: int
    primitive_rows: int


_TRAINING_ROWS = 16
_WIDE = _Limits(1 << 19, (4, 4), (2, 2), training=_HUGE, primitive_rows=_TRAINING_ROWS)
_NARROW = _Limits(1 << 20, (8, 16), (8, 16), training=_LARGE, primitive_rows=32)


def _limits() -> _Limits:
    """Those of this machine, by the vector unit that torch uses."""
    return _WIDE if torch.backends.cpu.get_cpu_capability() == "AVX512" else _NARROW


def why_torch(spec: RNNSpec, problem: Problem) -> list[str]:
    """Why `auto` should leave a call to torch's operators; empty if it should not.

    The answer depends on T and B by their powers of two alone, see `Backend.sizes_matter`. Cells
    that torch has no operator for are not left to it, nor are layers of int8 matrices: it would run
    one operation after the other. Its products of float16 are no faster than ours.
    """
    if spec.quantized or problem.dtype is torch.float16 or not spec.cell.is_built_in:
        return []
    steps, rows, trains = problem.T, problem.B, problem.needs_grad
    inputs = max(spec.input_size, spec.hidden_size if spec.num_layers > 1 else 0)
    width = len(spec.cell.gates) * spec.hidden_size
    itemsize = problem.dtype.itemsize
    size = itemsize * width * (inputs + spec.hidden_size)
    weights = f"{size / 1e6:.1f} MB of weights in a direction of a layer"
    if rows == 1 and _bound_by_weights(problem, size):
        return [f"a few steps of one row are bound by reading {weights}"]
    if problem.cell and trains and (1 << (rows - 1).bit_length()) * size < _RECORDED * itemsize:
        return ["autograd records a Cell of few rows faster as torch's own operator"]
    if steps == 1 and _bound_by_products(spec, problem, size):
        return [f"a single step is two products for each layer, with {weights}"]
    if spec.hidden_size == 1 and _is_mostly_empty(inputs, width, rows, trains=trains):
        return ["a single hidden feature leaves most of a vector empty"]
    return []


def _is_mostly_empty(inputs: int, gates: int, rows: int, *, trains: bool) -> bool:
    """Whether torch's products are faster for a single hidden feature."""
    if inputs >= _MANY_INPUTS and (trains or gates < _NARROW_GATES):
        return rows > _NARROW_ROWS
    return rows > (_NARROW_TRAINING if trains else _NARROW_FORWARD)


def _bound_by_products(spec: RNNSpec, problem: Problem, size: int) -> bool:
    """Whether torch's products with the rows of a step are faster, for weights of `size` bytes."""
    limits, rows = _limits(), problem.B
    if not problem.needs_grad:
        most = limits.vast_rows if size >= _VAST else limits.rows
        return size >= _HUGE and rows > most[torch.get_num_threads() > 1]
    if not problem.cell and has_primitive(spec, problem.dtype):
        return size >= _HUGE and rows > limits.primitive_rows
    return size >= limits.training and rows > _TRAINING_ROWS


def _bound_by_weights(problem: Problem, size: int) -> bool:
    """Whether torch's products with one row are faster, for weights of `size` bytes."""
    steps, threads = problem.T, torch.get_num_threads()
    if problem.needs_grad:
        return steps == 1 and size >= _LARGE
    if threads > 1 and size // problem.dtype.itemsize >= 2 * THREAD_WORK:
        return False
    if steps == 1:
        return size >= (_limits().cell_step if problem.cell else _LAYER_STEP)
    return threads == 1 and steps <= _FEW_STEPS and size >= _HUGE
