"""The layer as `torch.library` operators, for the graphs of torch.compile and torch.export.

A graph holds one node for the whole sequence, whatever its length. The node holds the name of the
backend that the user asked for ("auto" included). The backend is chosen when the node runs, for the
actual sizes:

    rnnjit::layer           x, hx, weights -> y, h_n
    rnnjit::layer_backward  x, hx, weights, y, h_n and their gradients -> the gradients needed

Eager mode does not use these operators: an `autograd.Function` has a fifth of their overhead. This
module is imported only when something is traced, since torch.library imports torch's compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op, register_autograd

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.cells import Cell
from rnnjit.dispatch.blame import blame
from rnnjit.dispatch.choice import choose, fallback_for
from rnnjit.dispatch.fallback import GENERATION, RAISE, Fallback
from rnnjit.dispatch.registry import by_key
from rnnjit.execution.validate_backend import check_grads, check_output
from rnnjit.reference import layer_backward
from rnnjit.runtime.torch_private import autograd_allowed
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

# Backends whose forward pass saves more than y. A graph does not hold it, so they rerun forward.
_SAVING: set[str] = set()


class TracedBackend(Backend):
    """Adds `rnnjit::layer` to the graph being traced; the node chooses a backend when it runs."""

    name = "traced"
    devices = None
    differentiable = True

    def __init__(self, key: str) -> None:
        self.key = key

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """Call the operator, which becomes one node of the graph."""
        y, *h_n = torch.ops.rnnjit.layer(
            *(x, rows.batch_sizes, rows.T, list(hx), list(weights)),
            *(layer.cell.text, layer.hidden_size, layer.bias, layer.proj_size, keep, self.key),
        )
        return LayerOutput(y, tuple(h_n))


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


# Calls a function outside of the graph being traced, with a graph break.
untraced: Callable[..., Any] = torch.compiler.disable(  # type: ignore[no-untyped-call]  # torch has no types here
    _call, reason="the sizes of a packed batch are not known while tracing"
)


@custom_op("rnnjit::layer", mutates_args=())
def layer_op(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    needs_grad: bool,
    backend: str,
) -> list[Tensor]:
    """Compute one layer; see `rnnjit.Backend.forward`.

    Args:
        x: `[N, I]`.
        batch_sizes: int64 `[T]` of a packed batch, or None for a dense one.
        steps: T.
        hx: each state `[D, B, P or H]`.
        weights: the weights of every direction, in nn.RNN's order.
        cell: the cell, as `Cell.text`.
        hidden_size: H.
        bias: whether the weights include biases.
        proj_size: P, or 0.
        needs_grad: whether a backward pass may follow.
        backend: key of the backend that the user asked for, see `key_of`.

    Returns:
        y `[N, D*P]`, then each state of h_n `[D, B, P or H]`, all contiguous.

    Raises:
        UnsupportedError: the backend that the user named declines the call.
        BackendError: the backend broke its contract, and no other may run the call.
    """
    layer = _layer(x, hx, cell, hidden_size, bias, proj_size)
    rows, chosen = _meet(layer, x, batch_sizes, steps, hx, needs_grad, backend)
    x, states = x.contiguous(), tuple(state.contiguous() for state in hx)

    def run(by: Backend) -> LayerOutput:
        try:
            with torch.no_grad():
                output = by.forward(layer, rows, x, states, weights, needs_grad)
            check_output(by, layer, rows, x, output)
        except Exception as error:
            blame(error, recorded=False)
            raise
        if any(tensor.numel() for tensor in output.saved):
            _SAVING.add(by.name)
        return output

    output = chosen.fallback.run(chosen.backend, run)
    return [tensor.contiguous() for tensor in (output.y, *output.h_n)]


@layer_op.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    needs_grad: bool,
    backend: str,
) -> list[Tensor]:
    directions, _, features = hx[0].shape
    states = [state.new_empty(state.shape) for state in hx]
    return [x.new_empty((x.shape[0], directions * features)), *states]


@custom_op("rnnjit::layer_backward", mutates_args=())
def layer_backward_op(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    given: Sequence[bool],
    needs: Sequence[bool],
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    backend: str,
) -> list[Tensor]:
    """Compute the gradients of one layer; see `rnnjit.Backend.backward`.

    Args:
        x: as in `rnnjit::layer`.
        batch_sizes: as in `rnnjit::layer`.
        steps: as in `rnnjit::layer`.
        hx: as in `rnnjit::layer`.
        weights: as in `rnnjit::layer`.
        outputs: the outputs of `rnnjit::layer`.
        grads: the gradients of those outputs that have one.
        given: for each output, whether it has a gradient.
        needs: whether to compute the gradient of x, of each state, and of each weight.
        cell: as in `rnnjit::layer`.
        hidden_size: as in `rnnjit::layer`.
        bias: as in `rnnjit::layer`.
        proj_size: as in `rnnjit::layer`.
        backend: as in `rnnjit::layer`.

    Returns:
        The gradients that are needed, in the order of `needs`; none shares memory with an input.
    """
    layer = _layer(x, hx, cell, hidden_size, bias, proj_size)
    rows, chosen = _meet(layer, x, batch_sizes, steps, hx, True, backend)
    x, states = x.contiguous(), tuple(state.contiguous() for state in hx)
    left = iter(grads)
    grad_y, *grad_h_n = (next(left) if present else None for present in given)
    split = 1 + len(states)
    wanted = Needs(needs[0], tuple(needs[1:split]), tuple(needs[split:]))
    by = chosen.backend

    def reference() -> LayerGrads:
        return layer_backward(layer, rows, x, states, weights, grad_y, tuple(grad_h_n), wanted)

    def compiled() -> LayerGrads:
        if by.differentiable:
            return reference()
        try:
            return own()
        except Exception as error:
            blame(error, recorded=False)
            raise

    def own() -> LayerGrads:
        output = LayerOutput(outputs[0], tuple(outputs[1:]))
        if by.name in _SAVING:
            output = by.forward(layer, rows, x, states, weights, True)
        found = by.backward(
            *(layer, rows, x, states, weights, output, grad_y, tuple(grad_h_n), wanted)
        )
        check_grads(by, x, states, weights, wanted, found)
        return found

    # Inside an operator torch disables autograd, but a backend may use it in its backward pass.
    with torch.no_grad(), autograd_allowed(required=by.differentiable):
        policy = RAISE if by.differentiable else chosen.fallback
        result = policy.or_else(by, compiled, reference, "the reference")
    found = [result.x, *result.hx, *result.weights]
    return _apart(
        [grad for grad, need in zip(found, needs, strict=True) if need and grad is not None],
        [x, *hx, *weights, *outputs, *grads],
    )


@layer_backward_op.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    given: Sequence[bool],
    needs: Sequence[bool],
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    backend: str,
) -> list[Tensor]:
    inputs = (x, *hx, *weights)
    return [t.new_empty(t.shape) for t, need in zip(inputs, needs, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, batch_sizes, steps, hx, weights, *options, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, batch_sizes, *hx, *output, *weights)
    ctx.steps, ctx.states, ctx.options = steps, len(hx), (*options, backend)


def _backward(ctx: Any, output_grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    x, batch_sizes, *rest = ctx.saved_tensors
    states = ctx.states
    hx, outputs, weights = rest[:states], rest[states : 2 * states + 1], rest[2 * states + 1 :]
    needs_x, _, _, needs_hx, needs_weights = ctx.needs_input_grad[:5]
    needs = [needs_x, *needs_hx, *needs_weights]
    given = [grad is not None for grad in output_grads]
    found: list[Tensor] = []
    if any(given):
        arrived = [grad for grad in output_grads if grad is not None]
        found = layer_backward_op(
            *(x, batch_sizes, ctx.steps, hx, weights, outputs, arrived, given, needs),
            *ctx.options,
        )
    left = iter(found)
    grads = [next(left, None) if need else None for need in needs]
    return grads[0], None, None, grads[1 : 1 + states], grads[1 + states :], *([None] * 6)


register_autograd(layer_op, _backward, setup_context=_save)


class _Chosen(NamedTuple):
    """The backend chosen for a call, and the policy if it raises."""

    backend: Backend
    fallback: Fallback


def _layer(
    x: Tensor, hx: Sequence[Tensor], cell: str, hidden_size: int, bias: bool, proj_size: int
) -> LayerSpec:
    """The layer that an operator's arguments describe."""
    directions = hx[0].shape[0]
    return LayerSpec(Cell.parse(cell), x.shape[1], hidden_size, directions, bias, proj_size)


def _meet(
    layer: LayerSpec,
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    needs_grad: bool,
    key: str,
) -> tuple[Rows, _Chosen]:
    """The rows of an operator's arguments, and the backend chosen for them."""
    rows = Rows(steps, hx[0].shape[1], x.shape[0], batch_sizes)
    packed = batch_sizes is not None
    where, index = x.device.type, x.get_device()
    problem = Problem(x.dtype, where, steps, rows.B, rows.N, packed, needs_grad, index)
    return rows, _choose(layer, problem, key, GENERATION.now, torch.get_num_threads())


@lru_cache(maxsize=512)
def _choose(layer: LayerSpec, problem: Problem, key: str, generation: int, threads: int) -> _Chosen:
    # What `tune` measured holds for one generation and thread count.
    spec = RNNSpec(
        layer.input_size,
        layer.hidden_size,
        cell=layer.cell,
        bias=layer.bias,
        bidirectional=layer.num_directions == 2,
        proj_size=layer.proj_size,
    )
    wanted = by_key(key)
    chosen = choose(spec, problem, wanted, traced=True)
    return _Chosen(chosen, fallback_for(spec, problem, wanted))


def _apart(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Make the outputs contiguous, and copy those that share memory with an input or each other.

    A custom operator must not return such tensors, but the two biases of a direction have the same
    gradient, and a backend may return one tensor for both.
    """
    taken = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    apart = []
    for output in outputs:
        fresh = output.contiguous()
        if fresh.untyped_storage().data_ptr() in taken:
            fresh = fresh.clone()
        taken.add(fresh.untyped_storage().data_ptr())
        apart.append(fresh)
    return apart
