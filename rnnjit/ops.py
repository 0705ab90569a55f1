"""The layer as `torch.library` operators: what torch.compile and torch.export put in their graphs.

A graph holds one node for the whole sequence, whatever its length. The node names the backend that
was asked for, and the choice falls when it runs, from the sizes that it then meets:

    rnnjit::layer           x, h0, weights -> y, h_n
    rnnjit::layer_backward  what the forward pass met, and the gradients -> those that are needed

Eager mode does not come here: an `autograd.Function` costs a fifth of an operator's call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.library import custom_op, register_autograd

from rnnjit.backend import Backend, LayerOutput, Needs
from rnnjit.contract import check_grads, check_output
from rnnjit.dispatch import choose
from rnnjit.failover import Failover
from rnnjit.failures import FAILURES, replaceable
from rnnjit.generation import GENERATION
from rnnjit.reference import layer_backward
from rnnjit.registry import by_key
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

# Backends whose forward pass keeps more than y. A graph does not carry it: they run forward anew.
_SAVING: set[str] = set()


@custom_op("rnnjit::layer", mutates_args=())
def layer_op(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    h0: Tensor,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """One layer over rows; see `rnnjit.Backend.forward`.

    Args:
        x: `[N, I]`.
        batch_sizes: int64 `[T]` of a packed batch, or None for a dense one.
        steps: T.
        h0: `[D, B, H]`.
        weights: of every direction, in nn.RNN's order.
        cell: name of the pointwise part.
        bias: whether there are biases among the weights.
        needs_grad: whether a backward pass may follow.
        backend: key of the one that was asked for.

    Returns:
        y `[N, D*H]` and h_n `[D, B, H]`, both contiguous.

    Raises:
        UnsupportedError: the backend that was asked for by name declines the call.
    """
    layer, rows, chosen = _meet(x, batch_sizes, steps, h0, cell, bias, needs_grad, backend)
    x, h0 = x.contiguous(), h0.contiguous()

    def run(by: Backend) -> LayerOutput:
        with torch.no_grad():
            output = by.forward(layer, rows, x, h0, weights, needs_grad)
        check_output(by, layer, rows, x, output)
        if output.saved:
            _SAVING.add(by.name)
        return output

    try:
        y, h_n, _ = run(chosen.backend)
    except Exception as error:
        if chosen.failover is None:
            raise
        y, h_n, _ = chosen.failover.instead(chosen.backend, error, run)
    return y.contiguous(), h_n.contiguous()


@layer_op.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    h0: Tensor,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    directions, _, hidden = h0.shape
    return x.new_empty((x.shape[0], directions * hidden)), h0.new_empty(h0.shape)


@custom_op("rnnjit::layer_backward", mutates_args=())
def layer_backward_op(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    h0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    h_n: Tensor,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    needs: Sequence[bool],
    cell: str,
    bias: bool,
    backend: str,
) -> list[Tensor]:
    """The gradients that are needed, of (x, h0, *weights), in that order.

    Args:
        x: as given to `rnnjit::layer`, like what is not listed here.
        batch_sizes: see there.
        steps: see there.
        h0: see there.
        weights: see there.
        y: what it returned.
        h_n: what it returned.
        grad_y: `[N, D*H]`, or None for zero.
        grad_h_n: `[D, B, H]`, or None for zero.
        needs: which of (x, h0, *weights) need a gradient.
        cell: see there.
        bias: see there.
        backend: see there.
    """
    layer, rows, chosen = _meet(x, batch_sizes, steps, h0, cell, bias, True, backend)
    x, h0 = x.contiguous(), h0.contiguous()
    wanted = Needs(needs[0], needs[1], tuple(needs[2:]))
    # Below an operator torch switches autograd off, but a backend may use it in its backward pass.
    given = (layer, rows, x, h0, weights)
    by = chosen.backend
    with torch.no_grad(), _autograd_allowed():
        try:
            if by.differentiable:
                grads = layer_backward(*given, grad_y, grad_h_n, wanted)
            else:
                saving = by.name in _SAVING
                output = by.forward(*given, True) if saving else LayerOutput(y, h_n)
                grads = by.backward(*given, output, grad_y, grad_h_n, wanted)
                check_grads(by, x, h0, weights, wanted, grads)
        except Exception as error:
            if chosen.failover is None or by.differentiable or not replaceable(error):
                raise
            grads = layer_backward(*given, grad_y, grad_h_n, wanted)
            FAILURES.note(by, error, "the reference")
    found = [grads.x, grads.h0, *grads.weights]
    return _apart(
        [grad for grad, need in zip(found, needs, strict=True) if need and grad is not None],
        [t for t in (grad_y, grad_h_n, x, h0, y, h_n, *weights) if t is not None],
    )


@layer_backward_op.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    h0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    h_n: Tensor,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    needs: Sequence[bool],
    cell: str,
    bias: bool,
    backend: str,
) -> list[Tensor]:
    inputs = (x, h0, *weights)
    return [t.new_empty(t.shape) for t, need in zip(inputs, needs, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, batch_sizes, steps, h0, weights, cell, bias, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, batch_sizes, h0, *output, *weights)
    ctx.steps, ctx.cell, ctx.bias, ctx.backend = steps, cell, bias, backend


def _backward(ctx: Any, grad_y: Tensor | None, grad_h_n: Tensor | None) -> tuple[Any, ...]:
    x, batch_sizes, h0, y, h_n, *weights = ctx.saved_tensors
    needs_x, _, _, needs_h0, needs_weights = ctx.needs_input_grad[:5]
    needs = [needs_x, needs_h0, *needs_weights]
    found: list[Tensor] = []
    if grad_y is not None or grad_h_n is not None:
        found = layer_backward_op(
            x,
            batch_sizes,
            ctx.steps,
            h0,
            weights,
            y,
            h_n,
            grad_y,
            grad_h_n,
            needs,
            ctx.cell,
            ctx.bias,
            ctx.backend,
        )
    left = iter(found)
    grads = [next(left, None) if need else None for need in needs]
    return grads[0], None, None, grads[1], grads[2:], None, None, None, None


register_autograd(layer_op, _backward, setup_context=_save)


class _Chosen(NamedTuple):
    """The backend that takes a call, and what is done where it raises (None: it raises)."""

    backend: Backend
    failover: Failover | None


def _meet(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    h0: Tensor,
    cell: str,
    bias: bool,
    needs_grad: bool,
    key: str,
) -> tuple[LayerSpec, Rows, _Chosen]:
    """What an operator was given, in the core's terms, and the backend that takes it."""
    directions, batch, hidden = h0.shape
    layer = LayerSpec(cell, x.shape[1], hidden, directions, bias)
    rows = Rows(steps, batch, x.shape[0], batch_sizes)
    packed = batch_sizes is not None
    where, index = x.device.type, x.get_device()
    problem = Problem(x.dtype, where, steps, batch, rows.N, packed, needs_grad, index)
    return layer, rows, _choose(layer, problem, key, GENERATION.now)


@lru_cache(maxsize=512)
def _choose(layer: LayerSpec, problem: Problem, key: str, generation: int) -> _Chosen:
    spec = RNNSpec(
        layer.input_size,
        layer.hidden_size,
        nonlinearity=layer.cell,
        bias=layer.bias,
        bidirectional=layer.num_directions == 2,
    )
    wanted = by_key(key)
    failover = Failover(spec, problem) if wanted is None else None
    return _Chosen(choose(spec, problem, wanted, traced=True), failover)


@contextmanager
def _autograd_allowed() -> Iterator[None]:
    """Lets a backward pass use autograd inside an operator, below which torch switches it off."""
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradFunctionality, DispatchKey.ADInplaceOrView):
        exclude = exclude.remove(key)
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        yield


def _apart(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs, contiguous and none in the memory of another or of an input.

    The two biases of a direction have one gradient, which a backend need not compute twice.
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
