"""Validates the results of a backend against its contract, before the core uses them.

The kernels of the next layer and autograd rely on the shapes, and autograd would take a missing
gradient for zero. Every call makes only cheap checks; `rnnjit.testing` checks values and memory
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.errors import BackendError
from rnnjit.runtime.torch_private import any_autocast, transforming
from rnnjit.spec import LayerSpec, Rows


def check_output(
    backend: Backend,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    output: LayerOutput,
    carried: torch.dtype | None = None,
) -> None:
    """Check what `Backend.forward` returned.

    Args:
        backend: the backend.
        layer: as given to the backend.
        rows: as given to the backend.
        x: the input; the results must have its dtype and device.
        output: the result of the backend.
        carried: the dtype of the last states but the first; by default that of x.

    Raises:
        BackendError: it is not a LayerOutput, or y or h_n violates the contract.
    """
    D, B, sizes, dtype = layer.num_directions, rows.B, layer.state_sizes, x.dtype
    device, wanted = x.device, dtype
    try:
        y, h_n, *_ = output
        if (
            type(output) is LayerOutput
            and type(h_n) is tuple
            and len(h_n) == len(sizes)
            and y.shape == (rows.N, D * sizes[0])
            and y.dtype is dtype
            and y.device == device
            and y.is_contiguous()
        ):
            for state, size in zip(h_n, sizes, strict=True):
                if (
                    state.shape != (D, B, size)
                    or state.dtype is not wanted
                    or state.device != device
                ):
                    break
                wanted = carried or dtype
            else:
                return
    except (AttributeError, TypeError, ValueError):
        pass
    if not isinstance(output, LayerOutput):
        raise BackendError(backend.name, "forward", "a LayerOutput", type(output).__name__)
    _check(backend, "y", output.y, (rows.N, D * sizes[0]), x)
    others = x if carried is None else x.new_empty(0, dtype=carried)
    _check_states(backend, output.h_n, [(D, rows.B, size) for size in sizes], x, others)
    # Under a transform, tensors do not have meaningful strides.
    if not output.y.is_contiguous() and not transforming():
        strides = f"one of strides {output.y.stride()}"
        raise BackendError(backend.name, "y", "a contiguous Tensor", strides)


def check_kept(backend: Backend, output: LayerOutput, read: tuple[bool, ...], inputs: int) -> None:
    """Check what a backend keeps for its backward pass.

    Args:
        backend: the backend.
        output: the result of its `forward`.
        read: the result of its `backward_reads`.
        inputs: how many inputs the layer has: x, the states and the weights.

    Raises:
        BackendError: `saved` is no tuple of Tensors, or `read` has not one bool for each input.
    """
    if type(read) is not tuple or len(read) != inputs:
        got = f"{len(read)} of them" if isinstance(read, tuple) else type(read).__name__
        raise BackendError(backend.name, "backward_reads", f"a tuple of {inputs} bools", got)
    saved: Any = output.saved
    if not isinstance(saved, tuple):
        raise BackendError(backend.name, "saved", "a tuple of Tensors", type(saved).__name__)
    for tensor in saved:
        if not isinstance(tensor, Tensor):
            raise BackendError(backend.name, "saved", "a tuple of Tensors", type(tensor).__name__)


def check_rebuilt(backend: Backend, layer: LayerSpec, rows: Rows, like: Tensor, y: Any) -> None:
    """Check what `Backend.rebuilt_output` returned; `like` has the dtype and device of the layer.

    Raises:
        BackendError: it violates the contract.
    """
    shape = rows.N, layer.num_directions * layer.output_size
    _check(backend, "rebuilt_output", y, shape, like)
    if not y.is_contiguous():
        strides = f"one of strides {y.stride()}"
        raise BackendError(backend.name, "rebuilt_output", "a contiguous Tensor", strides)


def check_stack_output(
    backend: Backend,
    y_shape: tuple[int, ...],
    x: Tensor,
    hx: States,
    result: Any,
) -> None:
    """Check what a backend's shortcut returned; see `Backend.shortcut` and `cell_shortcut`.

    Raises:
        BackendError: it is not a pair, or y or h_n violates the contract.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise BackendError(backend.name, "its shortcut", "a pair (y, h_n)", type(result).__name__)
    _check(backend, "y", result[0], y_shape, x)
    _check_states(backend, result[1], [tuple(state.shape) for state in hx], x, x)


def check_grads(
    backend: Backend,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    needs: Needs,
    grads: LayerGrads,
) -> None:
    """Check what `Backend.backward` returned.

    Args:
        backend: the backend.
        x: as given to the backend.
        hx: as given to the backend.
        weights: as given to the backend.
        needs: as given to the backend.
        grads: the result of the backend.

    Raises:
        BackendError: it is not a LayerGrads, or a gradient that is needed violates the contract.
    """
    if not isinstance(grads, LayerGrads):
        raise BackendError(backend.name, "backward", "LayerGrads", type(grads).__name__)
    _check_count(backend, "hx", grads.hx, len(hx))
    _check_count(backend, "weights", grads.weights, len(weights))
    dtype, index = x.dtype, -1
    found, inputs = (grads.x, *grads.hx, *grads.weights), (x, *hx, *weights)
    for grad, of, needed in zip(found, inputs, (needs.x, *needs.hx, *needs.weights), strict=True):
        # Autograd itself checks the device.
        if needed and (
            type(grad) is not Tensor or grad.shape != of.shape or grad.dtype is not dtype
        ):
            name = _name_of_input(index, len(hx))
            _check(backend, f"the gradient of {name}", grad, tuple(of.shape), of)
        index += 1


def _name_of_input(index: int, states: int) -> str:
    """The name of an input by its index: -1 is x, then come the states, then the weights."""
    if index < 0:
        return "x"
    return f"hx[{index}]" if index < states else f"weights[{index - states}]"


def _check_count(backend: Backend, name: str, found: Any, count: int) -> None:
    if isinstance(found, (tuple, list)) and len(found) == count:
        return
    got = str(len(found)) if isinstance(found, (tuple, list)) else type(found).__name__
    raise BackendError(backend.name, f"the gradients of {name}", f"{count} of them", got)


def check_untouched(backend: Backend, untouched: bool) -> None:
    """Check that a backend wrote to neither x nor hx, as far as torch's version counters show.

    Args:
        backend: the backend.
        untouched: whether `versions(x, hx)` is what it was before the call.

    Raises:
        BackendError: it wrote to them, so that the inputs are lost.
    """
    if not untouched:
        raise BackendError(
            *(backend.name, "its inputs", "x and hx to be left as they were", "one written to"),
            inputs_changed=True,
        )


def _check_states(
    backend: Backend, h_n: Any, shapes: Sequence[tuple[int, ...]], like: Tensor, others: Tensor
) -> None:
    """Check the states that a backend returned: a tuple of tensors of these shapes.

    The first has the dtype and device of `like`, the others those of `others`.
    """
    if not isinstance(h_n, tuple) or len(h_n) != len(shapes):
        got = f"{len(h_n)} of them" if isinstance(h_n, tuple) else type(h_n).__name__
        raise BackendError(backend.name, "h_n", f"a tuple of {len(shapes)} states", got)
    for index, (state, shape) in enumerate(zip(h_n, shapes, strict=True)):
        _check(backend, f"h_n[{index}]", state, shape, others if index else like)


def _check(backend: Backend, name: str, value: Any, shape: tuple[int, ...], like: Tensor) -> None:
    """Check one tensor; under autocast torch's own operators choose the dtype."""
    if (
        type(value) is Tensor
        and value.shape == shape
        and value.dtype is like.dtype
        and value.device == like.device
    ):
        return
    if not isinstance(value, Tensor):
        raise BackendError(backend.name, name, "a Tensor", type(value).__name__)
    if tuple(value.shape) != shape:
        raise BackendError(backend.name, name, f"shape {list(shape)}", f"shape {list(value.shape)}")
    if value.dtype is not like.dtype and not any_autocast():
        raise BackendError(backend.name, name, str(like.dtype), str(value.dtype))
    if value.device != like.device:
        raise BackendError(
            backend.name, name, f"a Tensor on {like.device}", f"one on {value.device}"
        )
