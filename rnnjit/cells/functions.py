"""A user's own `torch.autograd.Function`, such as a spike with a surrogate gradient.

Its forward pass is traced with the step. Its backward pass is traced with a gradient of its own
name; each result must be that gradient times a factor, unit by unit: the slope of `with_slope`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rnnjit.cells import expressions as source
from rnnjit.cells.expressions import Expression, slope_of
from rnnjit.cells.refusals import lines_of

if TYPE_CHECKING:
    from rnnjit.cells.blocks import Layout
    from rnnjit.cells.trace import Traced
    from rnnjit.cells.tracer import Tracer


def with_own_gradient(tracer: Tracer, node: Any, tensor: Tensor) -> None:
    """Give the result of a function the gradient that its backward pass computes.

    Args:
        tracer: the trace.
        node: the function's node in autograd's graph, which is also its `ctx`.
        tensor: its result.

    Raises:
        CellError: the backward pass is no pointwise factor of the gradient.
    """
    name = type(node).__name__.removesuffix("Backward")
    where = lines_of(getattr(node, "_forward_cls", type(node)).backward)
    if any(each.tensor.grad_fn is node and each.tensor is not tensor for each in tracer.traced):
        raise tracer.refuse(
            "is a torch.autograd.Function with several results",
            "Write a Function for each result",
            operation=name,
        )
    traced = tracer.look_up(tensor, resolve=False)
    if traced.marks is None or traced.node is not None:
        raise tracer.refuse(
            "is a torch.autograd.Function of parameters, x or random draws alone, whose gradient "
            "is not traced",
            "Write w + (f(w) - w).detach() for a gradient that passes straight through",
            operation=name,
        )
    found = tracer.marks.read(traced.marks)
    if found is None:
        raise tracer.misplaced(traced.marks)
    layout, values = found
    gradients = [tracer.pool.leaf(source.GRADIENT, (id(node), k)) for k in range(len(values))]
    results = _backward(tracer, node, tensor, layout, gradients)
    wanted = [each for each, need in zip(results, node.needs_input_grad, strict=False) if need]
    given = [edge for edge in node.next_functions if edge[0] is not None]
    numbers = [tracer.pool.values[number] for number in values]
    for result, edge in zip(wanted, given, strict=True):
        if result is None:
            continue
        inputs = tracer.blocks(_tensor_of(tracer, edge, name).tensor, layout)
        slopes = tracer.blocks(result, layout)
        for k, (x, value) in enumerate(zip(inputs, slopes, strict=True)):
            slope = slope_of(value, gradients[k])
            if slope is None:
                raise tracer.refuse(
                    "computes something else than its gradient times a factor, unit by unit",
                    "Return grad * slope, with a pointwise slope of what the forward pass saved",
                    operation=f"{name}.backward",
                    where=where,
                )
            if not (slope.operation == "constant" and slope.constants[0] == 0.0):
                numbers[k] = tracer.pool.append("with_slope", (numbers[k], x, slope))
    traced.marks = tracer.marks.write(layout, [value.number for value in numbers])


def _backward(
    tracer: Tracer, node: Any, tensor: Tensor, layout: Layout, gradients: list[Expression]
) -> tuple[Tensor | None, ...]:
    """The results of the backward pass, of a gradient that is a leaf."""
    gradient = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    marks = tracer.marks.write(layout, [each.number for each in gradients])
    tracer.keep(gradient, None, marks)
    tracer.differentiating = True
    calls, tracer.refuse.calls[:] = list(tracer.refuse.calls), []
    inside, tracer.refuse.inside = tracer.refuse.inside, False
    try:
        with torch.no_grad(), tracer.mode():
            results = node.apply(gradient)
    finally:
        tracer.differentiating = False
        tracer.refuse.inside = inside
    tracer.refuse.calls[:] = calls
    return results if isinstance(results, tuple) else (results,)


def _tensor_of(tracer: Tracer, edge: tuple[Any, int], name: str) -> Traced:
    """The tensor whose gradient autograd's edge leads to."""
    function, number = edge
    variable = getattr(function, "variable", None)
    for each in tracer.traced:
        tensor = each.tensor
        if tensor is variable or (tensor.grad_fn is function and tensor.output_nr == number):
            return each
    if variable is not None:
        return tracer.look_up(variable)
    raise tracer.refuse(
        "takes a tensor that the trace does not know",
        "Pass tensors of the step to it",
        operation=name,
    )
