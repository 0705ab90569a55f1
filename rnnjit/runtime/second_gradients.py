"""Second gradients of cuDNN's layers, whose own backward pass cannot be differentiated.

Autograd runs the node of such a layer in every backward pass. Only one that is recorded
(`create_graph=True`) may be differentiated again, and its gradients are computed anew, by operators
that can be. So the first gradients keep cuDNN's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: What the names of the nodes begin with.
_NODES = ("CudnnRnnBackward", "MiopenRnnBackward")


def differentiate_twice(
    run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    inputs: tuple[Tensor, ...],
    outputs: Sequence[Tensor],
) -> None:
    """Have a recorded backward pass of a layer on cuDNN go through `run`.

    It does nothing to outputs of other nodes, and to those of a node that has inputs besides.

    Args:
        run: from `inputs` to `outputs`, by operators that are differentiable twice.
        inputs: what the layer was computed from, unchanged.
        outputs: what it gave, unchanged.
    """
    node = outputs[0].grad_fn
    if node is None or not node.name().startswith(_NODES):
        return
    places = _places(node, inputs)
    if places is None:
        return
    # The outputs themselves would hold the node that holds this function.
    numbers = [output.output_nr for output in outputs]

    def recorded(
        grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...] | None:
        if not torch.is_grad_enabled():
            return None
        aliases = tuple(each.view_as(each) if each.requires_grad else each for each in inputs)
        pairs = [
            (output, grad)
            for output, number in zip(run(aliases), numbers, strict=True)
            if (grad := grad_outputs[number]) is not None
        ]
        wanted = [place for place, _ in places if grad_inputs[place] is not None]
        if not pairs or not wanted:
            return None
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            [aliases[index] for place, index in places if place in wanted],
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
        anew = dict(zip(wanted, found, strict=True))
        return tuple(anew.get(place, grad) for place, grad in enumerate(grad_inputs))

    node.register_hook(recorded)


def _places(node: Any, inputs: tuple[Tensor, ...]) -> list[tuple[int, int]] | None:
    """Pairs of a gradient's number in the node and an input's; None if one is of no input."""
    found, rest = [], [k for k, each in enumerate(inputs) if each.requires_grad]
    for place, (function, number) in enumerate(node.next_functions):
        if function is None:
            continue
        index = next((k for k in rest if _leads_to(function, number, inputs[k])), None)
        if index is None:
            return None
        rest.remove(index)
        found.append((place, index))
    return found


def _leads_to(function: Any, number: int, tensor: Tensor) -> bool:
    """Whether an edge of the graph leads to a tensor."""
    if tensor.grad_fn is None:
        return getattr(function, "variable", None) is tensor
    return function is tensor.grad_fn and number == tensor.output_nr
