"""The reference implementation of a layer, in plain differentiable torch operators.

It runs wherever torch runs, in any dtype and under every torch transform (double backward,
forward-mode AD, `torch.func`). Calls that the compiled path cannot serve run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, Shortcut, States
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec, Program
from rnnjit.ir.torch_evaluator import evaluate_tensors
from rnnjit.quantization import Product
from rnnjit.runtime.second_gradients import differentiate_twice
from rnnjit.single_step import cell_step, has_primitive, has_step, layer_step, stack_step
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class DirectionWeights(NamedTuple):
    """The weights of one direction, see `LayerSpec.weight_shapes`.

    Attributes:
        w_ih: `[G*H, I]`.
        w_hh: `[G*H, P or H]`, or `[G*H, 0]` for a cell without a recurrent product.
        b_ih: `[G*H]`, or None.
        b_hh: `[G*H]`, or None.
        w_hr: `[P, H]`, or None.
        parameters: the parameters of the cell, each `[H]`.
        scales, sums: of the rows of the matrices, in the order w_ih, w_hh, w_hr, of a quantized
            layer; else empty.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None
    parameters: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] = ()
    sums: tuple[Tensor, ...] = ()


def split_weights(layer: LayerSpec, weights: Sequence[Tensor], direction: int) -> DirectionWeights:
    """Pick the weights of one direction, by name, from the flat weights of a layer."""
    count = layer.weights_per_direction
    own = iter(weights[direction * count : (direction + 1) * count])
    w_ih, w_hh = next(own), next(own)
    b_ih, b_hh = (next(own), next(own)) if layer.bias else (None, None)
    w_hr = next(own) if layer.proj_size else None
    parameters, rest = tuple(islice(own, len(layer.cell.parameters))), tuple(own)
    scales, sums = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    return DirectionWeights(w_ih, w_hh, b_ih, b_hh, w_hr, parameters, scales, sums)


def layer_forward(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor]
) -> tuple[Tensor, States]:
    """Compute `(y [N, D*P], h_n)` of one layer; shapes as in `rnnjit.Backend.forward`.

    Raises:
        RuntimeError: `w_hh` is not a dense tensor.
    """
    y, h_n, _ = layer_steps(layer, rows, x, hx, weights)
    return y, h_n


class Steps(NamedTuple):
    """The result of `layer_steps`.

    Attributes:
        y: `[N, D*P]`.
        h_n: each state `[D, B, P or H]`.
        states: for each direction and step t the states after it, each `[batch_sizes[t], P or H]`.
            Autograd's graph leads through them, so that it gives the whole gradient of each.
    """

    y: Tensor
    h_n: States
    states: tuple[tuple[States, ...], ...]


def layer_steps(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor]
) -> Steps:
    """As `layer_forward`, with the states after every step.

    Raises:
        RuntimeError: `w_hh` is not a dense tensor.
    """
    directions = []
    with _recording(layer):
        for d in range(layer.num_directions):
            own, states = split_weights(layer, weights, d), tuple(state[d] for state in hx)
            inputs = _row_inputs(layer, x, d)
            columns = x if layer.features == layer.input_size else x[:, : layer.input_size]
            given = layer, rows, columns, inputs, states, own
            directions.append(_direction_forward(*given, reverse=d == 1))
        y = torch.cat([each.y for each in directions], dim=1)
        h_n = tuple(map(torch.stack, zip(*(each.last for each in directions), strict=True)))
    return Steps(y, h_n, tuple(each.states for each in directions))


def layer_forward_states(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor]
) -> LayerOutput:
    """As `layer_forward`, with each state after the first, see `rnnjit.Backend.forward_states`.

    Raises:
        RuntimeError: `w_hh` is not a dense tensor.
    """
    y, h_n, directions = layer_steps(layer, rows, x, hx, weights)
    with _recording(layer):
        states = tuple(
            torch.cat([torch.cat([step[index] for step in steps]) for steps in directions], dim=1)
            for index in range(1, len(hx))
        )
    return LayerOutput(y, h_n, (), states)


def layer_backward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    grad_y: Tensor | None,
    grad_h_n: tuple[Tensor | None, ...],
    needs: Needs,
    grad_states: tuple[Tensor | None, ...] = (),
) -> LayerGrads:
    """Compute the gradients by autograd; shapes as in `rnnjit.Backend.backward`.

    In grad mode the gradients carry a graph, for double backward. The inputs are aliased first:
    one input may depend on another (a weight computed from x, say), and this function must return
    only the direct gradient of each. `grad_states` is as in `rnnjit.Backend.backward_states`.
    """
    recorded = torch.is_grad_enabled()
    wanted, states = (needs.x, *needs.hx, *needs.weights), len(hx)
    with torch.enable_grad():
        x, *rest = (
            tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_(need)
            for tensor, need in zip((x, *hx, *weights), wanted, strict=True)
        )
        given = layer, rows, x, tuple(rest[:states]), rest[states:]
        if any(grad is not None for grad in grad_states):
            y, h_n, _, after = layer_forward_states(*given)
        else:
            (y, h_n), after, grad_states = layer_forward(*given), (), ()
    pairs = [
        (output, grad)
        for output, grad in zip((y, *h_n, *after), (grad_y, *grad_h_n, *grad_states), strict=True)
        if grad is not None and output.requires_grad
    ]
    outputs, grads_given = [output for output, _ in pairs], [grad for _, grad in pairs]
    leaves = [tensor for tensor, need in zip((x, *rest), wanted, strict=True) if need]
    found: Iterator[Tensor | None] = repeat(None)
    if pairs:
        found = iter(
            torch.autograd.grad(
                outputs, leaves, grads_given, create_graph=recorded, allow_unused=True
            )
        )
    grad_x, *grads = (next(found) if need else None for need in wanted)
    return LayerGrads(grad_x, tuple(grads[:states]), tuple(grads[states:]))


def _row_inputs(layer: LayerSpec, x: Tensor, direction: int) -> tuple[Tensor, ...]:
    """The row inputs of a direction, each `[N, H]`."""
    count, H = len(layer.cell.row_inputs), layer.hidden_size
    start = layer.input_size + direction * count * H
    return tuple(x[:, start + k * H : start + (k + 1) * H] for k in range(count))


class _Direction(NamedTuple):
    """What one direction computes: y `[N, P]`, the last states, and those after each step."""

    y: Tensor
    last: States
    states: tuple[States, ...]


#: How many steps are projected at once. The gradient of `w_ih` sums over their rows, and one sum in
#: float32 over tens of thousands of rows is less exact than a sum of shorter ones.
_STEPS_AT_ONCE = 64


def _recording(layer: LayerSpec) -> AbstractContextManager[object]:
    """Within it torch records what has a gradient: all but quantized layers, which round."""
    return torch.no_grad() if layer.quantized else nullcontext()


#: The products of rows `[n, columns]` with a matrix, plus a bias.
_Product = Callable[[Tensor], Tensor]


class _Products(NamedTuple):
    """The products of a direction, with the biases: of the input, of the operand, and W_hr's."""

    ih: _Product
    hh: _Product
    hr: _Product | None


def _products(layer: LayerSpec, weights: DirectionWeights) -> _Products:
    """The products of a direction.

    Raises:
        RuntimeError: `w_hh` is not a dense tensor.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr, *_ = weights
    if layer.quantized:
        scales = weights.scales
        hr = None if w_hr is None else Product(w_hr, scales[2])
        return _Products(Product(w_ih, scales[0], b_ih), Product(w_hh, scales[1], b_hh), hr)
    if w_ih.layout is not torch.strided:
        w_ih = w_ih.to_dense(masked_grad=False)  # as eager does
    if w_hh.layout is not torch.strided:
        raise RuntimeError(f"weight_hh must be a dense tensor, got one of layout {w_hh.layout}")
    return _Products(
        partial(F.linear, weight=w_ih, bias=b_ih),
        partial(F.linear, weight=w_hh, bias=b_hh),
        None if w_hr is None else partial(F.linear, weight=w_hr),
    )


def _input_projections(x: Tensor, project: _Product, sizes: list[int]) -> list[Tensor]:
    """The input projection of each step, `[batch_sizes[t], G*H]`."""
    groups = [sizes[t : t + _STEPS_AT_ONCE] for t in range(0, len(sizes), _STEPS_AT_ONCE)]
    parts = torch.split(x, [sum(group) for group in groups])
    return [
        step
        for part, group in zip(parts, groups, strict=True)
        for step in torch.split(project(part), group)
    ]


def _direction_forward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    row_inputs: tuple[Tensor, ...],
    hx: States,
    weights: DirectionWeights,
    *,
    reverse: bool,
) -> _Direction:
    """Run one direction: the input projection of all rows first, then step by step."""
    products, sizes = _products(layer, weights), rows.sizes
    projected = _input_projections(x, products.ih, sizes)
    inputs = [torch.split(each, sizes) for each in row_inputs]
    outputs: dict[int, Tensor] = {}
    after: dict[int, States] = {}
    states = tuple(state[:0] for state in hx) if reverse else hx
    finished: list[States] = []
    for t in range(rows.T - 1, -1, -1) if reverse else range(rows.T):
        size, held = sizes[t], states[0].shape[0]
        if size > held:
            states = tuple(
                torch.cat([state, first[held:size]])
                for state, first in zip(states, hx, strict=True)
            )
        elif size < held:
            finished.append(tuple(state[size:] for state in states))
            states = tuple(state[:size] for state in states)
        of_step = tuple(each[t] for each in inputs)
        outputs[t], states = _step(
            layer, products, projected[t], states, weights.parameters, of_step
        )
        after[t] = states
    finished.append(states)
    steps = range(rows.T)
    last = tuple(map(torch.cat, zip(*finished[::-1], strict=True)))
    return _Direction(torch.cat([outputs[t] for t in steps]), last, tuple(after[t] for t in steps))


def _step(
    layer: LayerSpec,
    products: _Products,
    zx: Tensor,
    states: States,
    parameters: tuple[Tensor, ...],
    row_inputs: tuple[Tensor, ...],
) -> tuple[Tensor, States]:
    """The output and the states after one step of a direction."""
    cell = layer.cell
    operand = states[0]
    if not cell.has_product:
        operand = operand[:, :0]
    elif cell.operand is not None:
        (operand,) = _evaluated(cell.operand, (*states, *parameters))
    zh = products.hh(operand)
    gates = len(cell.gates)
    # Each chunk is one more autograd node; a single gate needs none.
    parts = (zx, zh) if gates == 1 else (*zx.chunk(gates, -1), *zh.chunk(gates, -1))
    given = (*parts, *states, *parameters, *row_inputs)
    shape = states[0].shape[0], layer.hidden_size
    results = _evaluated(cell.program, given)
    # A result that is a parameter is [H].
    out, *after = [each if each.dim() == 2 else each.expand(shape) for each in results]
    if products.hr is not None:
        out = products.hr(out)
        after[0] = out
    return out, tuple(after)


def _evaluated(program: Program, given: Sequence[Tensor]) -> list[Tensor]:
    """Evaluate a cell's program, which has no output that is None."""
    return [value for value in evaluate_tensors(program, given) if value is not None]


class ReferenceBackend(Backend):
    """`layer_forward` as a backend: for torch's transforms, and for tests to compare with.

    It is not registered under a name: the last choice of `auto` is `EagerBackend`, which is faster.
    """

    name = "reference"
    priority = -2000
    devices = None
    differentiable = True
    quantized = True
    sizes_matter = False

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """Run `layer_forward`, which autograd records."""
        return LayerOutput(*layer_forward(layer, rows, x, hx, weights))


#: Torch's own operators, called `(x, hx, weights, bias, layers, dropout, train, bidirectional,
#: batch_first)`, or `(data, batch_sizes, hx, ...)` packed.
_OPERATORS: dict[CellSpec, Callable[..., Any]] = {
    RNN_TANH: torch.rnn_tanh,
    RNN_RELU: torch.rnn_relu,
    LSTM: torch.lstm,
    GRU: torch.gru,
}


#: Cells whose operator also projects.
_PROJECTING = {LSTM}
#: Rows of a single step up to which laying out the weights for such a primitive takes longer than
#: it saves.
_FEW_ROWS = 16


def has_operator(layer: LayerSpec) -> bool:
    """Whether torch has an operator that computes whole layers like this."""
    known = _PROJECTING if layer.proj_size else _OPERATORS
    return layer.cell in known and not layer.quantized


def _by_cells(layer: LayerSpec, rows: Rows, device: str, dtype: torch.dtype) -> bool:
    """Whether a call is a step of few rows that torch would give to a primitive of oneDNN."""
    few = rows.T == 1 and 0 < rows.B <= _FEW_ROWS and rows.batch_sizes is None
    return few and device == "cpu" and has_step(layer) and has_primitive(layer, dtype)


class EagerBackend(Backend):
    """PyTorch's own layers (`torch.rnn_tanh`, `torch.lstm`, ...): always available, last in `auto`.

    It takes every dtype and device that eager takes. Cells without a torch operator run through
    `layer_forward`, and a step of few rows of an LSTM on the CPU through PyTorch's LSTMCell.
    """

    name = "eager"
    priority = -1000
    devices = None
    differentiable = True
    quantized = True
    sizes_matter = False

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """Call torch's own operator, which autograd records."""
        operator = None if layer.quantized else _OPERATORS.get(layer.cell)
        if operator is None:
            return LayerOutput(*layer_forward(layer, rows, x, hx, weights))
        if _by_cells(layer, rows, x.device.type, x.dtype):
            return LayerOutput(*layer_step(layer, x, hx, weights))
        options = (layer.bias, 1, 0.0, keep, layer.num_directions == 2)
        state = hx[0] if len(hx) == 1 else hx
        if rows.batch_sizes is None:
            dense = x.view(rows.T, rows.B, layer.input_size)
            y, *h_n = operator(dense, state, list(weights), *options, False)
            if keep and _may_be_cudnn(x):
                _differentiate_twice((layer,), rows, (dense, *hx, *weights), (y, *h_n))
            if y.requires_grad or torch.compiler.is_compiling():
                y = y.flatten(0, 1)
            else:  # A view could not become a tensor that the caller may change in place.
                y.resize_(rows.N, y.shape[2])
            return LayerOutput(y, tuple(h_n))
        y, *h_n = operator(x, rows.batch_sizes, state, list(weights), *options)
        if keep and _may_be_cudnn(x):
            _differentiate_twice((layer,), rows, (x, *hx, *weights), (y, *h_n))
        return LayerOutput(y, tuple(h_n))

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """Run the whole stack in one call of torch's operator."""
        operator = None if spec.quantized else _OPERATORS.get(spec.cell)
        if operator is None:
            return None
        options = (spec.bias, spec.num_layers, 0.0, problem.needs_grad)
        layout = (spec.bidirectional, spec.batch_first)
        rows = Rows(problem.T, problem.B, problem.N)
        if _by_cells(spec.layers[0], rows, problem.device, problem.dtype):
            return stack_step(spec)

        def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
            state = hx[0] if len(hx) == 1 else hx
            if not (problem.needs_grad and _may_be_cudnn(x)):
                y, *h_n = operator(x, state, weights, *options, *layout)
                return y, tuple(h_n)
            x = x.transpose(0, 1) if spec.batch_first else x
            y, *h_n = operator(x, state, weights, *options, spec.bidirectional, False)
            _differentiate_twice(spec.layers, rows, (x, *hx, *weights), (y, *h_n))
            return y.transpose(0, 1) if spec.batch_first else y, tuple(h_n)

        return run

    def cell_shortcut(self, spec: RNNSpec, problem: Problem) -> Shortcut | None:
        """The operator of torch's own Cell."""
        return cell_step(spec) if has_step(spec) else None


def _may_be_cudnn(x: Tensor) -> bool:
    """Whether torch's operators may run on cuDNN, outside of a trace."""
    return x.is_cuda and not torch.compiler.is_compiling()


def _differentiate_twice(
    layers: Sequence[LayerSpec],
    rows: Rows,
    inputs: tuple[Tensor, ...],
    outputs: Sequence[Tensor],
) -> None:
    """Have recorded backward passes of a stack on cuDNN go through `layer_forward`.

    Args:
        layers: of the stack, without dropout.
        rows: how the rows of x are laid over time.
        inputs: x `[T, B, I]` or `[N, I]`, each state `[L*D, B, P or H]` and all weights.
        outputs: y and each h_n.
    """
    states = len(layers[0].cell.states)

    def run(given: tuple[Tensor, ...]) -> Sequence[Tensor]:
        x, hx, weights = given[0], given[1 : 1 + states], given[1 + states :]
        y, ends = x.reshape(rows.N, -1), []
        for index, layer in enumerate(layers):
            D = layer.num_directions
            count = D * layer.weights_per_direction
            own = tuple(state[index * D : (index + 1) * D] for state in hx)
            of_layer = weights[index * count : (index + 1) * count]
            y, h_n = layer_forward(layer, rows, y, own, of_layer)
            ends.append(h_n)
        y = y.view(*x.shape[:-1], y.shape[1])
        return y, *map(torch.cat, zip(*ends, strict=True))

    differentiate_twice(run, inputs, outputs)


BACKEND = EagerBackend()
