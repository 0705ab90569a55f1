"""The layer as `torch.library` operators, for the graphs of torch.compile and torch.export.

A graph holds one node for the whole sequence, whatever its length. The node holds the name of the
backend that the user asked for ("auto" included). The backend is chosen when the node runs, for the
actual sizes (`rnnjit.execution.traced_layer`):

    rnnjit::layer           x, hx, weights -> y, h_n
    rnnjit::layer_backward  x, hx, weights, y, h_n and their gradients -> the gradients needed
    rnnjit::batch_sizes     the batch sizes of a PackedSequence, checked
    rnnjit::zero_states     initial states, where only the batch sizes say how many

Eager mode does not use these operators: an `autograd.Function` has a fifth of their overhead. This
module is imported only when something is traced, since torch.library imports torch's compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_autograd

from rnnjit.backend import Backend, LayerOutput, States
from rnnjit.execution.packed_ops import batch_sizes_op, zero_states_op
from rnnjit.execution.traced_layer import TracedLayer, run_backward, run_forward
from rnnjit.ir import CellSpec
from rnnjit.spec import LayerSpec, Problem, Rows

#: The operators: importing this module registers them all.
__all__ = ["batch_sizes_op", "layer_backward_op", "layer_op", "zero_states_op"]


class TracedBackend(Backend):
    """Adds `rnnjit::layer` to the graph being traced; the node chooses a backend when it runs.

    Args:
        key: key of the backend that the user asked for.
        reset: boolean `[T, B]`, where sequences start anew, or None.
        starts: for each layer, in the order of the calls of `forward`, what a reset puts in the
            place of each state; an empty tuple for zeros.
    """

    name = "traced"
    devices = None
    differentiable = True

    def __init__(
        self, key: str, reset: Tensor | None = None, starts: Sequence[States] = ()
    ) -> None:
        self.key, self.reset = key, reset
        self._starts: Iterator[States] = iter(starts)

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
        return self._added(layer, rows, x, hx, weights, keep, record=False)

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """Always: the backend that is chosen does, or else the reference."""
        return True

    def forward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """As `forward`, with the states of every step."""
        return self._added(layer, rows, x, hx, weights, keep, record=True)

    def _added(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
        *,
        record: bool,
    ) -> LayerOutput:
        reset_to = next(self._starts, ())
        y, *states = torch.ops.rnnjit.layer(
            *(x, rows.batch_sizes, rows.T, [*hx, *reset_to], list(weights), self.reset),
            *(layer.cell.text, layer.hidden_size, layer.bias, layer.proj_size),
            *(record, keep, self.key),
        )
        return LayerOutput(y, tuple(states[: len(hx)]), (), tuple(states[len(hx) :]))


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


#: Why a call with packed input, resets or all states is not traced, by a word for it.
WHY_UNTRACED = {
    "transform": "a torch.func transform is active, which rnnjit traces for dense input alone, "
    "without reset and return_states",
    "autocast": "under autocast torch's own layer runs, which torch does not trace with packed "
    "input, and which has neither reset nor return_states",
    "cell": "a compiled Recurrent computes the weights and inputs of its cells outside of graphs",
    "assigned": "torch's own layer runs, since what its forward uses was assigned; torch does not "
    "trace it with packed input, and it has neither reset nor return_states",
}
#: By the same words: what calls a function outside of the graph being traced, with a graph break.
UNTRACED: dict[str, Callable[..., Any]] = {
    word: torch.compiler.disable(_call, reason=reason)  # type: ignore[no-untyped-call]  # torch has no types here
    for word, reason in WHY_UNTRACED.items()
}


@custom_op("rnnjit::layer", mutates_args=())
def layer_op(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    reset: Tensor | None,
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    record: bool,
    needs_grad: bool,
    backend: str,
) -> list[Tensor]:
    """Compute one layer; see `rnnjit.Backend.forward`.

    Args:
        x: `[N, I + D*R*H]`, with the row inputs of the cell.
        batch_sizes: int64 `[T]` of a packed batch, or None for a dense one.
        steps: T.
        hx: each state `[D, B, P or H]`. After them, for resets that do not lead to zeros, what a
            reset puts in the place of each: `[T, B, D, P or H]` or `[D, P or H]`. A list of their
            own could be empty, which AOTInductor does not pass on.
        weights: the weights of every direction, in nn.RNN's order.
        reset: boolean `[T, B]`, where the sequences of a dense batch start anew, or None.
        cell: the cell, as `CellSpec.text`.
        hidden_size: H.
        bias: whether the weights include biases.
        proj_size: P, or 0.
        record: whether to return every state of every step.
        needs_grad: whether a backward pass may follow.
        backend: key of the backend that the user asked for, see `key_of`.

    Returns:
        y `[N, D*P]`, then each state of h_n `[D, B, P or H]`, then with `record` each state after
        the first after every step, `[N, D*H]`; all contiguous.

    Raises:
        UnsupportedError: the backend that the user named declines the call.
        BackendError: the backend broke its contract, and no other may run the call.
    """
    call = _as_call(
        *(x, batch_sizes, steps, hx, weights, reset, cell, hidden_size, bias, proj_size, backend)
    )
    return run_forward(call, needs_grad, record)


@layer_op.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    reset: Tensor | None,
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    record: bool,
    needs_grad: bool,
    backend: str,
) -> list[Tensor]:
    directions, _, features = hx[0].shape
    hx = hx[: len(CellSpec.parse(cell).states)]
    states = [state.new_empty(state.shape) for state in hx]
    widths = [directions * state.shape[2] for state in hx[1:]] if record else []
    y, *after = (x.new_empty((x.shape[0], c)) for c in (directions * features, *widths))
    return [y, *states, *after]


@custom_op("rnnjit::layer_backward", mutates_args=())
def layer_backward_op(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    reset: Tensor | None,
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
        reset: as in `rnnjit::layer`.
        outputs: the outputs of `rnnjit::layer`.
        grads: the gradients of those outputs that have one.
        given: for each output, whether it has a gradient.
        needs: whether to compute the gradient of x, of each tensor of hx, and of each weight.
        cell: as in `rnnjit::layer`.
        hidden_size: as in `rnnjit::layer`.
        bias: as in `rnnjit::layer`.
        proj_size: as in `rnnjit::layer`.
        backend: as in `rnnjit::layer`.

    Returns:
        The gradients that are needed, in the order of `needs`; none shares memory with an input.
    """
    call = _as_call(
        *(x, batch_sizes, steps, hx, weights, reset, cell, hidden_size, bias, proj_size, backend)
    )
    return run_backward(call, outputs, grads, given, needs)


@layer_backward_op.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    reset: Tensor | None,
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
    x, batch_sizes, steps, hx, weights, reset, *options, _, _, backend = inputs
    ctx.set_materialize_grads(False)
    # Copies, since the model may write to its results: a graph with such a write would not compile.
    own = [result.clone() for result in output]
    ctx.save_for_backward(x, batch_sizes, reset, *hx, *weights, *own)
    ctx.steps, ctx.options = steps, (*options, backend)
    ctx.counts = len(hx), len(weights)


def _backward(ctx: Any, output_grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    x, batch_sizes, reset, *rest = ctx.saved_tensors
    states, count = ctx.counts
    hx, weights, outputs = rest[:states], rest[states : states + count], rest[states + count :]
    needs_x, _, _, needs_hx, needs_weights = ctx.needs_input_grad[:5]
    needs = [needs_x, *needs_hx, *needs_weights]
    given = [grad is not None for grad in output_grads]
    found: list[Tensor] = []
    if any(given):
        arrived = [grad for grad in output_grads if grad is not None]
        found = layer_backward_op(
            *(x, batch_sizes, ctx.steps, hx, weights, reset, outputs, arrived, given, needs),
            *ctx.options,
        )
    left = iter(found)
    grads = [next(left, None) if need else None for need in needs]
    return grads[0], None, None, grads[1 : 1 + states], grads[1 + states :], *([None] * 8)


register_autograd(layer_op, _backward, setup_context=_save)


def _as_call(
    x: Tensor,
    batch_sizes: Tensor | None,
    steps: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    reset: Tensor | None,
    cell: str,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    backend: str,
) -> TracedLayer:
    """The layer and the tensors that an operator's arguments describe."""
    directions, batch, _ = hx[0].shape
    parsed = CellSpec.parse(cell)
    input_size = x.shape[1] - directions * len(parsed.row_inputs) * hidden_size
    quantized = weights[0].dtype is torch.int8
    sizes = input_size, hidden_size, directions
    layer = LayerSpec(parsed, *sizes, bias, proj_size, quantized)
    rows, count = Rows(steps, batch, x.shape[0], batch_sizes), len(layer.cell.states)
    states, reset_to = tuple(hx[:count]), tuple(hx[count:])
    return TracedLayer(layer, backend, x, rows, states, weights, reset, reset_to)
