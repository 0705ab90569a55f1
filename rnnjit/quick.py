"""The short way through a call like one before: dense, with gradients or without.

A streaming step takes a few microseconds, and so little may be spent on checking it. A `Route`
remembers what the checks of a first call found, for tensors and surroundings that torch's own
guards, those of its compiler, compare anew at every call; whatever is unlike goes the long way,
which checks all and words every error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

from torch import Tensor, nn
from torch._C._dynamo.guards import GlobalStateGuard, TensorGuards
from torch.autograd import forward_ad

from rnnjit.autograd import run_layer
from rnnjit.backend import Backend, Shortcut
from rnnjit.contract import check_stack_output
from rnnjit.failover import Failover
from rnnjit.failures import FAILURES, replaceable
from rnnjit.spec import Problem, RNNSpec, Rows
from rnnjit.stack import LayerRun, run_stack

Rescue = Callable[[Exception, Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]]


class Route:
    """Calls of one module with one kind of input and state.

    Attributes:
        run: computes them.
        rescue: computes one in which `run` has raised, given the error before the tensors; or None.
        weights_of: from the module's parameters to its weights, in nn.RNN's order.
        h0_shape: of the state, `[L*D, B, H]`.
        tensors: whether x, h0 and the weights are as they were: their types, dtypes, devices,
            shapes, strides and dispatch keys (and with these transforms, modes and lazy signs), and
            whether they require gradients.
        surroundings: whether grad mode, autocast, torch's thread count and the like are.
    """

    __slots__ = ("h0_shape", "rescue", "run", "surroundings", "tensors", "weights_of")

    def __init__(
        self,
        run: Shortcut,
        rescue: Rescue | None,
        names: list[str],
        x: Tensor,
        h0: Tensor,
        weights: tuple[Tensor, ...],
    ) -> None:
        tensors = (x, h0, *weights)
        self.run, self.rescue = run, rescue
        self.weights_of = itemgetter(*names)
        self.h0_shape = h0.shape
        self.surroundings = GlobalStateGuard()
        sizes: list[Any] = [list(tensor.shape) for tensor in tensors]
        strides: list[Any] = [list(tensor.stride()) for tensor in tensors]
        self.tensors = TensorGuards(
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        )

    def __deepcopy__(self, memo: object) -> Route:
        # It holds nothing of the module that it is called with, so that a copy may share it.
        return self

    def __call__(
        self, module: nn.Module, x: Tensor, h0: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """The result `(y, h_n)`, or None if this call is of another kind."""
        # Dual tensors of forward-mode differentiation are the one thing that guards do not see.
        if forward_ad._current_level >= 0 or not self.surroundings.check():
            return None
        if h0 is None:
            try:
                h0 = x.new_zeros(self.h0_shape)
            except RuntimeError:
                return None  # a kind of numbers that has no zeros
        elif getattr(h0, "is_nested", True):
            return None  # The guards would end the process, asking it for strides.
        try:
            weights = self.weights_of(module._parameters)
        except KeyError:
            return None
        if not self.tensors.check(x, h0, *weights):
            return None
        try:
            return self.run(x, h0, weights)
        except Exception as error:
            if self.rescue is None:
                raise
            return self.rescue(error, x, h0, weights)


def shortcut(
    backend: Backend,
    spec: RNNSpec,
    problem: Problem,
    training: bool,
    x: Tensor,
    h0: Tensor,
    weights: tuple[Tensor, ...],
    failover: Failover | None,
) -> tuple[Shortcut, Rescue | None] | None:
    """How a backend computes calls like this one, or None if they must go the long way.

    Args:
        backend: has accepted `problem`.
        spec: of the stack.
        problem: what the call is.
        training: whether dropout is on.
        x: the input in the caller's form.
        h0: `[L*D, B, H]`.
        weights: of all layers.
        failover: what is to be done where the backend raises, or None if it is to raise.

    Returns:
        What `Route` takes.
    """
    if not (x.is_cpu or x.is_cuda) or x.dim() != 3 or x.numel() == 0:
        return None
    contiguous = all(tensor.is_contiguous() for tensor in (x, h0, *weights))
    dropout = spec.dropout and training and spec.num_layers > 1
    if contiguous and not dropout:
        features = spec.num_directions * spec.hidden_size
        try:
            if not spec.batch_first or 1 in x.shape[:2]:
                run = _own(backend, spec, problem, (x.shape[0], x.shape[1], features))
            else:
                run = _time_major(backend, spec, problem, (x.shape[1], x.shape[0], features))
        except Exception as error:
            if failover is None or not replaceable(error):
                raise
            FAILURES.note(backend, error, "its own forward pass")
            return None
        if run is not None:
            return run, None if failover is None else _rescue(backend, spec, problem, failover)
    return _layer_by_layer(backend, spec, problem, training, failover or run_layer), None


def _rescue(backend: Backend, spec: RNNSpec, problem: Problem, failover: Failover) -> Rescue:
    """Has other backends do, layer by layer, what a backend's shortcut has failed to do."""

    def rescue(
        error: Exception, x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        def run(other: Backend) -> tuple[Tensor, Tensor]:
            return _layer_by_layer(other, spec, problem, False, run_layer)(x, h0, weights)

        return failover.instead(backend, error, run)

    return rescue


def _own(
    backend: Backend, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
) -> Shortcut | None:
    """A backend's shortcut, whose first result is checked: the others are of calls like it."""
    run = backend.shortcut(spec, problem, y_shape)
    if run is None:
        return None
    checked = False

    def own(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        nonlocal checked
        result = run(x, h0, weights)
        if not checked:
            check_stack_output(backend, y_shape, x, h0, result)
            checked = True
        return result

    return own


def _time_major(
    backend: Backend, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
) -> Shortcut | None:
    """A backend's shortcut for batch-first calls, between two transpositions."""
    run = _own(backend, replace(spec, batch_first=False), problem, y_shape)
    if run is None:
        return None

    def transposed(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        y, h_n = run(x.transpose(0, 1).contiguous(), h0, weights)
        return y.transpose(0, 1), h_n

    return transposed


def _layer_by_layer(
    backend: Backend, spec: RNNSpec, problem: Problem, training: bool, by: LayerRun
) -> Shortcut:
    """The stack as the long way runs it, without its checks."""
    rows = Rows(problem.T, problem.B, problem.N)
    features = spec.num_directions * spec.hidden_size
    needs_grad, batch_first = problem.needs_grad, spec.batch_first

    def run(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x = (x.transpose(0, 1) if batch_first else x).contiguous()
        y, h_n = run_stack(backend, spec, rows, x, h0, weights, training, needs_grad, by)
        if y.dim() == 2:
            y = y.view(rows.T, rows.B, features)
        return (y.transpose(0, 1) if batch_first else y), h_n

    return run
