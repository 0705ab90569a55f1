"""The function that a fast path runs: a whole stack on one backend, without argument checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rnnjit.backend import Backend, Shortcut, States
from rnnjit.dispatch.blame import blame, blamed
from rnnjit.dispatch.fallback import FAILURES, RAISE, Fallback, replaceable
from rnnjit.dispatch.packed_path import PackedRun
from rnnjit.execution.autograd import (
    BoundLayer,
    RecordedLayer,
    apply_recorded,
    needs_of,
    run_layer,
)
from rnnjit.execution.stack import dense_output, run_stack
from rnnjit.execution.validate_backend import check_stack_output
from rnnjit.runtime.torch_private import HAS_GUARDS
from rnnjit.spec import Problem, RNNSpec, Rows

#: y and the last states.
Result = tuple[Tensor, States]


def fast_call(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    training: bool,
    x: Tensor,
    hx: States,
    weights: tuple[Tensor, ...],
    fallback: Fallback,
) -> Shortcut | None:
    """Make the function that computes calls like this one, or None if they need the full path.

    Args:
        backend: the backend, which has accepted `problem`.
        spec: the configuration of the stack.
        problem: the properties of the call.
        training: whether the module is in training mode.
        x: the input in the caller's form.
        hx: each state `[L*D, B, P or H]`.
        weights: the weights of all layers, in nn.RNN's flat order.
        fallback: the policy if the backend raises.
    """
    if not HAS_GUARDS or not (x.is_cpu or x.is_cuda) or x.dim() != 3 or x.numel() == 0:
        return None
    dropout = spec.dropout and training and spec.num_layers > 1
    if _may_be_contiguous((x, *hx), weights) and not dropout:
        features = spec.num_directions * (spec.proj_size or spec.hidden_size)
        try:
            # The graph may hold y, so `_time_major` could not transpose it in place.
            if not spec.batch_first or 1 in x.shape[:2] or problem.needs_grad:
                shape = (x.shape[0], x.shape[1], features)
                run = _own(backend, spec, problem, shape, fallback)
                if run is None and problem.needs_grad:
                    run = _recorded(backend, spec, problem, (x, *hx, *weights), fallback)
            else:
                shape = (x.shape[1], x.shape[0], features)
                run = _time_major(backend, spec, problem, shape, fallback)
        except Exception as error:
            blame(error, recorded=False)
            if not fallback.active or not replaceable(error):
                raise
            FAILURES.note(backend, error, "its own forward pass")
            return None
        if run is not None:
            # Other batch-first calls lay x out anew anyway.
            return _contiguous(run, x, hx, not spec.batch_first or 1 in x.shape[:2])
    return _layer_by_layer(backend, spec, problem, training, fallback)


def _may_be_contiguous(given: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> bool:
    """Whether a shortcut can run on copies of the inputs that are given: weights are not copied."""
    strided = all([tensor.layout is torch.strided for tensor in given])  # noqa: C419 - faster
    return strided and all([weight.is_contiguous() for weight in weights])  # noqa: C419 - faster


def _contiguous(run: Shortcut, x: Tensor, hx: States, copy_x: bool = True) -> Shortcut:
    """A shortcut for calls whose inputs have the strides of these: one step of a sequence has gaps.

    Args:
        run: takes contiguous states, and contiguous x if `copy_x`.
        x: the input of such a call.
        hx: its states.
        copy_x: whether x must be contiguous.
    """
    x_lies = x.is_contiguous() or not copy_x
    if x_lies and all([state.is_contiguous() for state in hx]):  # noqa: C419 - faster
        return run

    def laid_out(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> Result:
        states = tuple([state.contiguous() for state in hx])
        return run(x if x_lies else x.contiguous(), states, weights)

    return laid_out


def packed_call(
    backend: Backend, spec: RNNSpec, problem: Problem, training: bool, fallback: Fallback
) -> PackedRun:
    """Make the function that computes packed calls of one kind, without argument checks.

    Args:
        backend: the backend, which accepts calls of this kind whatever their sizes.
        spec: the configuration of the stack.
        problem: the properties of such a call; its sizes do not matter.
        training: whether the module is in training mode.
        fallback: the policy if the backend raises.
    """
    needs_grad = problem.needs_grad

    def run(x: Tensor, rows: Rows, hx: States, weights: tuple[Tensor, ...]) -> Result:
        return run_stack(backend, spec, rows, x, hx, weights, training, needs_grad, fallback)

    return run


def fast_cell_call(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    x: Tensor,
    hx: States,
    weights: tuple[Tensor, ...],
    fallback: Fallback,
) -> Shortcut | None:
    """`fast_call` for a cell, in whose form x and the states are: `[B, I]`, each `[B, H]`.

    Returns:
        A function that gives its results in this form, too; None if the backend has no such one,
        or these calls need more.
    """
    given = x, *hx, *weights
    strided = all([tensor.layout is torch.strided for tensor in given])  # noqa: C419 - faster
    recorded = problem.needs_grad
    if not (HAS_GUARDS and strided) or x.dim() != 2 or x.numel() == 0:
        return None
    if recorded and not backend.differentiable:
        return None
    try:
        run = backend.cell_shortcut(spec, problem)
    except Exception as error:
        blame(error, recorded=False)
        if not fallback.active or not replaceable(error):
            raise
        FAILURES.note(backend, error, "its own forward pass")
        return None
    if run is None:
        return None
    if not all([tensor.is_contiguous() for tensor in given]):  # noqa: C419 - faster
        run = _of_contiguous(run)

    def others(by: Backend, x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> Result:
        states = tuple([state.unsqueeze(0) for state in hx])
        call = _layer_by_layer(by, spec, problem, False, RAISE)
        y, h_n = call(x.unsqueeze(0), states, weights)
        return y.squeeze_(0), tuple([state.squeeze_(0) for state in h_n])

    return _checked(
        backend, run, (problem.B, spec.hidden_size), fallback, others, recorded=recorded
    )


def _of_contiguous(run: Shortcut) -> Shortcut:
    """A shortcut that takes tensors of any strides."""

    def contiguous(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> Result:
        states = tuple([state.contiguous() for state in hx])
        return run(x.contiguous(), states, tuple([weight.contiguous() for weight in weights]))

    return contiguous


def _own(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    y_shape: tuple[int, int, int],
    fallback: Fallback,
) -> Shortcut | None:
    """A backend's shortcut for calls in a layer's form."""
    run = backend.shortcut(spec, problem, y_shape)
    if run is None:
        return None

    def others(by: Backend, x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> Result:
        return _layer_by_layer(by, spec, problem, False, RAISE)(x, hx, weights)

    return _checked(backend, run, y_shape, fallback, others, recorded=problem.needs_grad)


def _checked(
    backend: Backend,
    run: Shortcut,
    y_shape: tuple[int, ...],
    fallback: Fallback,
    others: Callable[[Backend, Tensor, States, tuple[Tensor, ...]], Result],
    *,
    recorded: bool = False,
) -> Shortcut:
    """A backend's shortcut; only its first result is checked, since later calls are alike.

    Args:
        backend: the backend.
        run: its shortcut.
        y_shape: the shape of y.
        fallback: the policy if it raises.
        others: computes a call by another backend.
        recorded: whether autograd records the calls.
    """
    checked = False

    def own(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        nonlocal checked
        try:
            result = run(x, hx, weights)
            if not checked:
                check_stack_output(backend, y_shape, x, hx, result)
                checked = True
            return result
        except Exception as error:
            blame(error, recorded=recorded)
            if not fallback.active:
                raise
            return fallback.instead(backend, error, lambda by: others(by, x, hx, weights))

    return own


def _time_major(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    y_shape: tuple[int, int, int],
    fallback: Fallback,
) -> Shortcut | None:
    """A backend's time-major shortcut for batch-first calls without gradients.

    y is transposed in place, so that it is no view: see `dense_output`.
    """
    run = _own(backend, replace(spec, batch_first=False), problem, y_shape, fallback)
    if run is None:
        return None

    def transposed(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        y, h_n = run(x.transpose(0, 1).contiguous(), hx, weights)
        return y.transpose_(0, 1), h_n

    return transposed


def _recorded(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    inputs: tuple[Tensor, ...],
    fallback: Fallback,
) -> Shortcut | None:
    """A recorded stack of one layer without the detours of `_layer_by_layer`, or None.

    Args:
        backend: the backend.
        spec: the configuration of the stack.
        problem: the properties of the call.
        inputs: x, the states and the weights of a call.
        fallback: the policy if the backend raises.
    """
    if spec.num_layers > 1 or backend.differentiable or not _have_memory(inputs):
        return None
    layer, rows = spec.layers[0], Rows(problem.T, problem.B, problem.N)
    needed = tuple([tensor.requires_grad for tensor in inputs])
    own = backend.training(layer, problem, needs_of(needed, len(layer.cell.states)))
    if own is None:
        recorded = RecordedLayer(backend, layer, rows, True, fallback, needed)
    else:
        recorded = BoundLayer(backend, layer, rows, fallback, needed, own)
    batch_first = spec.batch_first

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        if batch_first:
            x = x.transpose(0, 1).contiguous()
        try:
            found = apply_recorded(recorded, x, *hx, *weights)
        except Exception as error:
            if not fallback.active or not blamed(error):
                raise

            def others(by: Backend) -> tuple[Tensor, States]:
                return run_layer(by, layer, rows, x, hx, weights, True, True, fallback)

            y, h_n = fallback.instead(backend, error, others)
            return dense_output(y, rows, batch_first), h_n
        y = found[0]
        return y.transpose_(0, 1) if batch_first else y, found[1:]

    return run


def _have_memory(tensors: tuple[Tensor, ...]) -> bool:
    """Whether none is a wrapper that a transform of torch.func has left behind."""
    try:
        for tensor in tensors:
            tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def _layer_by_layer(
    backend: Backend, spec: RNNSpec, problem: Problem, training: bool, fallback: Fallback
) -> Shortcut:
    """Run the stack layer by layer as the full path does, without the argument checks."""
    rows = Rows(problem.T, problem.B, problem.N)
    needs_grad, batch_first = problem.needs_grad, spec.batch_first

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        x = (x.transpose(0, 1) if batch_first else x).contiguous()
        y, h_n = run_stack(backend, spec, rows, x, hx, weights, training, needs_grad, fallback)
        return dense_output(y, rows, batch_first), h_n

    return run
