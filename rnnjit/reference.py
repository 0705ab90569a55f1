"""The layer in plain differentiable torch: what every kernel is held against.

It runs wherever torch runs, in any dtype, under every transform torch has (double backward,
forward-mode AD, `torch.func`), and is the answer where the compiled path has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, Shortcut
from rnnjit.cells import CELLS
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


def split_weights(layer: LayerSpec, weights: Sequence[Tensor], direction: int) -> Sequence[Tensor]:
    """The weights of one direction: (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh)."""
    count = layer.weights_per_direction
    return weights[direction * count : (direction + 1) * count]


def layer_forward(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`(y [N, D*H], h_n [D, B, H])` of one layer; shapes as in `rnnjit.Backend.forward`."""
    outputs = [
        _direction_forward(layer, rows, x, h0[d], split_weights(layer, weights, d), reverse=d == 1)
        for d in range(layer.num_directions)
    ]
    y = torch.cat([output for output, _ in outputs], dim=1)
    return y, torch.stack([state for _, state in outputs])


def layer_backward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    needs: Needs,
) -> LayerGrads:
    """The gradients by differentiating `layer_forward`; shapes as in `rnnjit.Backend.backward`.

    In grad mode they are a graph of their own, for double backward. The inputs are aliased first:
    one may depend on another (a weight computed from x, say), and only the direct share of each is
    wanted here.
    """
    recorded = torch.is_grad_enabled()
    wanted = (needs.x, needs.h0, *needs.weights)
    with torch.enable_grad():
        inputs = [
            tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_(need)
            for tensor, need in zip((x, h0, *weights), wanted, strict=True)
        ]
        outputs = layer_forward(layer, rows, inputs[0], inputs[1], inputs[2:])
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, (grad_y, grad_h_n), strict=True)
        if grad is not None
    ]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [tensor for tensor, need in zip(inputs, wanted, strict=True) if need],
            [grad for _, grad in pairs],
            create_graph=recorded,
            allow_unused=True,
        )
    )
    grads = [next(found) if need else None for need in wanted]
    return LayerGrads(grads[0], grads[1], tuple(grads[2:]))


def _direction_forward(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor], *, reverse: bool
) -> tuple[Tensor, Tensor]:
    """One direction: the input's share of every pre-activation first, then step by step."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] if layer.bias else (None, None)
    activation = CELLS[layer.cell].activation
    if w_ih.layout is not torch.strided:
        w_ih = w_ih.to_dense(masked_grad=False)  # as eager has it
    if w_hh.layout is not torch.strided:
        raise RuntimeError(f"weight_hh must be a dense tensor, got one of layout {w_hh.layout}")
    sizes = rows.sizes
    projected = torch.split(F.linear(x, w_ih, b_ih), sizes)
    order = range(rows.T - 1, -1, -1) if reverse else range(rows.T)
    steps: dict[int, Tensor] = {}
    h = h0[:0] if reverse else h0
    finished: list[Tensor] = []
    for t in order:
        size = sizes[t]
        if size > h.shape[0]:
            h = torch.cat([h, h0[h.shape[0] : size]])
        elif size < h.shape[0]:
            finished.append(h[size:])
            h = h[:size]
        h = activation(projected[t] + F.linear(h, w_hh, b_hh))
        steps[t] = h
    finished.append(h)
    return torch.cat([steps[t] for t in range(rows.T)]), torch.cat(finished[::-1])


class ReferenceBackend(Backend):
    """`layer_forward` as a backend: for torch's transforms, and to be held against in tests.

    It is not installed under a name: `auto` ends with `EagerBackend`, which is faster.
    """

    name = "reference"
    priority = -2000
    differentiable = True

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Never declines."""
        return []

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The layer by `layer_forward`, which autograd records."""
        return LayerOutput(*layer_forward(layer, rows, x, h0, weights))


_OPERATORS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "tanh": torch.rnn_tanh,
    "relu": torch.rnn_relu,
}


class EagerBackend(Backend):
    """PyTorch's own layer (`torch.rnn_tanh`, `torch.rnn_relu`): always there, last in `auto`.

    It takes every dtype and device that eager takes. Cells that torch has no layer for go through
    `layer_forward`.
    """

    name = "eager"
    priority = -1000
    differentiable = True

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Never declines."""
        return []

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The layer by torch's own operator, which autograd records."""
        operator = _OPERATORS.get(layer.cell)
        if operator is None:
            return LayerOutput(*layer_forward(layer, rows, x, h0, weights))
        bidirectional = layer.num_directions == 2
        if rows.batch_sizes is None:
            dense = x.view(rows.T, rows.B, layer.input_size)
            y, h_n = operator(
                dense, h0, list(weights), layer.bias, 1, 0.0, keep, bidirectional, False
            )
            return LayerOutput(y.flatten(0, 1), h_n)
        y, h_n = operator(
            x, rows.batch_sizes, h0, list(weights), layer.bias, 1, 0.0, keep, bidirectional
        )
        return LayerOutput(y, h_n)

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """The whole stack by one call of torch's operator."""
        operator = _OPERATORS.get(spec.nonlinearity)
        if operator is None:
            return None
        options = (spec.bias, spec.num_layers, 0.0, problem.needs_grad)
        layout = (spec.bidirectional, spec.batch_first)

        def run(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = operator(x, h0, weights, *options, *layout)
            return result

        return run


BACKEND = EagerBackend()
