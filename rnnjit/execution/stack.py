"""Runs a stack of layers, with the parts that are the same for every backend, such as dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import profiler

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.execution.autograd import run_layer
from rnnjit.runtime.torch_private import (
    dispatch_mode,
    forward_mode,
    profiler_runs,
    transforming,
)
from rnnjit.spec import LayerSpec, RNNSpec, Rows

#: `(backend, layer, rows, x, hx, weights, needs_grad, last) -> (y, h_n)`, see `run_layer`.
LayerRun = Callable[
    [Backend, LayerSpec, Rows, Tensor, States, Sequence[Tensor], bool, bool], tuple[Tensor, States]
]


def run_stack(
    backend: Backend,
    spec: RNNSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    training: bool,
    needs_grad: bool,
    fallback: Fallback = RAISE,
    run: LayerRun = run_layer,
) -> tuple[Tensor, States]:
    """Run every layer on the outputs of the layer below, with dropout between layers.

    Dropout draws from torch's generator in the same shapes and order as eager, so that the same
    seed gives the same masks.

    Args:
        backend: computes each layer.
        spec: the configuration of the stack.
        rows: how the rows of `x` are laid over time.
        x: `[N, I]`, or `[T, B, I]` for a dense batch.
        hx: each state `[L*D, B, P or H]`.
        weights: the weights of all layers, in nn.RNN's flat order.
        training: whether the module is in training mode, in which dropout is on.
        needs_grad: whether a backward pass may follow.
        fallback: the policy if the backend raises. It applies layer by layer, so that no layer runs
            twice and the dropout masks do not change.
        run: runs a layer, as `run_layer` does; ignored if `fallback` is active.

    Returns:
        y `[N, D*P]` or `[T, B, D*P]` of the last layer, and the states h_n of all layers, each
        `[L*D, B, P or H]`.

    Raises:
        BackendError: the backend broke its contract, and no other may run the layer.
    """
    profiled = profiling()
    if fallback.active:
        run = _with_fallback(fallback)
    if spec.num_layers == 1 and not profiled:
        states = tuple([state.contiguous() for state in hx])
        return run(backend, spec.layers[0], rows, x, states, weights, needs_grad, True)
    directions = spec.num_directions
    finals: list[States] = []
    start = 0
    for index, layer in enumerate(spec.layers):
        stop = start + directions * layer.weights_per_direction
        own = tuple([s.narrow(0, index * directions, directions).contiguous() for s in hx])
        last = index == spec.num_layers - 1
        with layer_range(backend, index) if profiled else nullcontext():
            x, h_n = run(backend, layer, rows, x, own, weights[start:stop], needs_grad, last)
        finals.append(h_n)
        start = stop
        if spec.dropout and training and not last:
            x = torch.dropout(x, spec.dropout, training)
    return x, tuple(map(torch.cat, zip(*finals, strict=True)))


def dense_output(y: Tensor, rows: Rows, batch_first: bool) -> Tensor:
    """Convert y of a dense batch to the caller's layout, as a tensor that is no view.

    Torch forbids `detach_` of a view, and in-place changes of a view made without gradients by a
    tensor with gradients. Eager's y is no view.

    Args:
        y: what `run_stack` returned, `[N, D*P]` or `[T, B, D*P]`; its layout is changed in place
            where that is possible.
        rows: how the rows are laid over time.
        batch_first: whether the caller's layout is `[B, T, D*P]`.

    Returns:
        `[T, B, D*P]`, or `[B, T, D*P]` with the strides of a transposed tensor, as in eager. While
        torch.compile traces it is a view, since a graph decides itself what its results are.
    """
    if y.dim() == 3:  # from our own autograd function, which keeps a copy
        return y.transpose_(0, 1) if batch_first else y
    traced = torch.compiler.is_compiling()
    if not (traced or y.requires_grad or _transformed(y)):
        y.resize_(rows.T, rows.B, y.shape[1])
        return y.transpose_(0, 1) if batch_first else y
    # The graph may hold y, so it must stay as it is.
    y = y.view(rows.T, rows.B, y.shape[1])
    y = y.transpose(0, 1) if batch_first else y
    return y if traced else y.clone()


def _transformed(y: Tensor) -> bool:
    """Whether torch may not be able to resize a tensor in place: a transform or mode sees it."""
    return type(y) is not Tensor or transforming() or forward_mode() or dispatch_mode()


def _with_fallback(fallback: Fallback) -> LayerRun:
    """`run_layer` with a fallback policy."""

    def run(
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        needs_grad: bool,
        last: bool,
    ) -> tuple[Tensor, States]:
        def work(by: Backend) -> tuple[Tensor, States]:
            return run_layer(by, layer, rows, x, hx, weights, needs_grad, last, fallback)

        return fallback.run(backend, work)

    return run


def profiling() -> bool:
    """Whether one of torch's profilers is running, in any thread.

    False while torch.compile traces: in its graphs the operator already names the layer.
    """
    return not torch.compiler.is_compiling() and profiler_runs()


def layer_range(backend: Backend, index: int) -> AbstractContextManager[object]:
    """A profiler range such as `rnnjit: layer 0 on numba`, for a layer's forward pass."""
    return profiler.record_function(f"rnnjit: layer {index} on {backend.name}")
