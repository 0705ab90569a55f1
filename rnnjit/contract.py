"""Holds what a backend returns to its contract: a wrong shape is never handed on.

Kernels of the layer above, and autograd, trust shapes, and a missing gradient would be no gradient.
Only what is cheap is looked at in every call; `rnnjit.testing` looks at values and memory too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs
from rnnjit.errors import BackendError
from rnnjit.spec import LayerSpec, Rows


def check_output(
    backend: Backend, layer: LayerSpec, rows: Rows, x: Tensor, output: LayerOutput
) -> None:
    """Check what `Backend.forward` returned.

    Args:
        backend: whose it is.
        layer: as given to it.
        rows: as given to it.
        x: of the dtype and device that the results must have.
        output: what it returned.

    Raises:
        BackendError: it is no LayerOutput, or y or h_n is not what the contract says.
    """
    H, D, dtype = layer.hidden_size, layer.num_directions, x.dtype
    try:
        y, h_n, _ = output
        if (
            type(output) is LayerOutput
            and y.shape == (rows.N, D * H)
            and h_n.shape == (D, rows.B, H)
            and y.dtype is dtype
            and h_n.dtype is dtype
            and y.device == x.device
            and h_n.device == x.device
            and y.is_contiguous()
        ):
            return
    except (AttributeError, TypeError, ValueError):
        pass
    if not isinstance(output, LayerOutput):
        raise BackendError(backend.name, "forward", "a LayerOutput", type(output).__name__)
    _check(backend, "y", output.y, (rows.N, D * H), x)
    _check(backend, "h_n", output.h_n, (D, rows.B, H), x)
    # Tensors of a transform are asked for their shapes alone.
    if not output.y.is_contiguous() and torch._C._functorch.peek_interpreter_stack() is None:
        strides = f"one of strides {output.y.stride()}"
        raise BackendError(backend.name, "y", "a contiguous Tensor", strides)


def check_stack_output(
    backend: Backend,
    y_shape: tuple[int, int, int],
    x: Tensor,
    h0: Tensor,
    result: Any,
) -> None:
    """Check what a backend's shortcut returned; see `Backend.shortcut`.

    Raises:
        BackendError: it is no pair, or y or h_n is not what the contract says.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise BackendError(backend.name, "its shortcut", "a pair (y, h_n)", type(result).__name__)
    _check(backend, "y", result[0], y_shape, x)
    _check(backend, "h_n", result[1], tuple(h0.shape), x)


def check_grads(
    backend: Backend,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    needs: Needs,
    grads: LayerGrads,
) -> None:
    """Check what `Backend.backward` returned.

    Args:
        backend: whose it is.
        x: as given to it, like what is not listed here.
        h0: see there.
        weights: see there.
        needs: see there.
        grads: what it returned.

    Raises:
        BackendError: it is no LayerGrads, or a gradient that is needed is not what the contract
            says.
    """
    if not isinstance(grads, LayerGrads):
        raise BackendError(backend.name, "backward", "LayerGrads", type(grads).__name__)
    if not isinstance(grads.weights, (tuple, list)) or len(grads.weights) != len(weights):
        count = len(grads.weights) if isinstance(grads.weights, (tuple, list)) else grads.weights
        raise BackendError(
            backend.name, "the gradients of weights", f"{len(weights)} of them", str(count)
        )
    dtype = x.dtype
    index = -2
    found, inputs = (grads.x, grads.h0, *grads.weights), (x, h0, *weights)
    for grad, of, needed in zip(found, inputs, (needs.x, needs.h0, *needs.weights), strict=True):
        # Autograd itself looks at the device.
        if needed and (
            type(grad) is not Tensor or grad.shape != of.shape or grad.dtype is not dtype
        ):
            name = ("x", "h0")[index] if index < 0 else f"weights[{index}]"
            _check(backend, f"the gradient of {name}", grad, tuple(of.shape), of)
        index += 1


def version(x: Tensor, h0: Tensor) -> int:
    """How often torch's operators have written to x and h0: it grows with every time."""
    try:
        return x._version + h0._version
    except RuntimeError:
        return -1  # torch does not count for tensors of inference mode


def check_untouched(backend: Backend, x: Tensor, h0: Tensor, before: int) -> None:
    """Check that a backend wrote to neither x nor h0, as far as torch can tell.

    Raises:
        BackendError: it did, and what it was given is lost; `before` is another `version`.
    """
    if version(x, h0) != before:
        raise BackendError(
            *(backend.name, "its inputs", "x and h0 to be left as they were", "one written to"),
            inputs_changed=True,
        )


def _check(backend: Backend, name: str, value: Any, shape: tuple[int, ...], like: Tensor) -> None:
    """One tensor at leisure; under autocast torch's own operators choose the dtype."""
    if not isinstance(value, Tensor):
        raise BackendError(backend.name, name, "a Tensor", type(value).__name__)
    if tuple(value.shape) != shape:
        raise BackendError(backend.name, name, f"shape {list(shape)}", f"shape {list(value.shape)}")
    if value.dtype is not like.dtype and not torch._C._is_any_autocast_enabled():
        raise BackendError(backend.name, name, str(like.dtype), str(value.dtype))
    if value.device != like.device:
        raise BackendError(
            backend.name, name, f"a Tensor on {like.device}", f"one on {value.device}"
        )
