"""Graphs of torch operators: what of a step depends on parameters, x and draws alone.

A trace records the operators of a step as nodes. Two traces with different batch sizes are merged:
a size that differs becomes a multiple of the number of rows, so that the graph of one step is
evaluated for all rows at once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


class Depends(enum.IntEnum):
    """What a node depends on at most: each includes those before."""

    CONSTANT = 0
    PARAMETERS = 1
    X = 2
    DRAWS = 3


@dataclass(frozen=True)
class Batch:
    """A size of `factor` times the number of rows."""

    factor: int


class Node:
    """A tensor of a trace: a leaf, or the result of a torch operator.

    Attributes:
        number: its place in the trace; arguments come before.
        depends: what it depends on.
        function: the operator; None for a leaf, and for one of several results.
        args, kwargs: the operator's arguments, in which nodes stand for tensors.
        leaf: what a leaf is: a name of the cell's tensor, the number of a draw, "x", or a tensor.
        item: which of the results of its only argument it is, if those are several.
        like: a tensor of its shape, dtype and device in the trace, or several.
        grad: whether gradients pass.
        where: the line of the user's code.
    """

    __slots__ = (
        *("number", "depends", "function", "args", "kwargs", "leaf", "item", "like", "grad"),
        "where",
    )

    def __init__(
        self,
        number: int,
        depends: Depends,
        like: Any,
        where: str,
        *,
        function: Callable[..., Any] | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        leaf: str | int | Tensor | None = None,
        item: int | None = None,
        grad: bool = True,
    ) -> None:
        self.number, self.depends, self.like, self.where = number, depends, like, where
        self.function, self.args, self.kwargs = function, args, dict(kwargs or {})
        self.leaf, self.item, self.grad = leaf, item, grad

    @property
    def shape(self) -> torch.Size:
        """Its shape in the trace."""
        shape: torch.Size = self.like.shape
        return shape

    @property
    def arguments(self) -> Iterator[Node]:
        """The nodes that it is computed from."""
        return _nodes([*self.args, *self.kwargs.values()])


def _nodes(values: Sequence[Any]) -> Iterator[Node]:
    for value in values:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _nodes(value)


def replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    """The value with everything in its lists and tuples replaced."""
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(each, replace) for each in value)
    return replace(value)


def replaced_values(kwargs: dict[str, Any], replace: Any) -> dict[str, Any]:
    """The keyword arguments with everything in them replaced."""
    return {name: replaced(value, replace) for name, value in kwargs.items()}


class DependsOnBatchError(Exception):
    """Two traces with different batch sizes have different graphs; `node` is where."""

    def __init__(self, node: Node) -> None:
        self.node = node
        super().__init__(node.where)


class Merge:
    """Merges the nodes of two traces, whose batch sizes differ.

    Args:
        sizes: the batch sizes of the traces.
    """

    def __init__(self, sizes: tuple[int, int]) -> None:
        self._sizes = sizes
        self._merged: dict[int, tuple[int, Node]] = {}

    def __call__(self, one: Node, other: Node) -> Node:
        """The node that stands for both.

        Raises:
            DependsOnBatchError: they differ by more than sizes.
        """
        waiting = [(one, other)]
        while waiting:
            a, b = waiting[-1]
            found = self._merged.get(a.number)
            if found is not None:
                if found[0] != b.number:
                    raise DependsOnBatchError(a)
                waiting.pop()
                continue
            pairs = list(zip(a.arguments, b.arguments, strict=False))
            missing = [pair for pair in pairs if pair[0].number not in self._merged]
            if missing:
                waiting += missing
            else:
                self._merged[a.number] = (b.number, self._node(a, b))
                waiting.pop()
        return self._merged[one.number][1]

    def _node(self, a: Node, b: Node) -> Node:
        same = a.function is b.function and a.item == b.item and a.kwargs.keys() == b.kwargs.keys()
        if not same or a.grad != b.grad or not self._same_leaf(a.leaf, b.leaf):
            raise DependsOnBatchError(a)
        args = self._value(a.args, b.args, a)
        kwargs = {name: self._value(a.kwargs[name], b.kwargs[name], a) for name in a.kwargs}
        sizes = _integers(a.function)
        for name, value in [*zip(sizes, args, strict=False), *kwargs.items()]:
            # A batch size is no number to compute with: the graph runs for all rows at once.
            if isinstance(value, Batch) and not sizes.get(name):
                raise DependsOnBatchError(a)
        # Without `like`, which autograd's graph ties to the parameters of the trace.
        return Node(
            *(a.number, a.depends, None, a.where),
            function=a.function,
            args=args,
            kwargs=kwargs,
            leaf=a.leaf,
            item=a.item,
            grad=a.grad,
        )

    @staticmethod
    def _same_leaf(a: str | int | Tensor | None, b: str | int | Tensor | None) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
        return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b

    def _value(self, a: Any, b: Any, node: Node) -> Any:
        """The argument that stands for both."""
        if isinstance(a, Node) and isinstance(b, Node):
            number, merged = self._merged[a.number]
            if number != b.number:
                raise DependsOnBatchError(node)
            return merged
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            if len(a) != len(b):
                raise DependsOnBatchError(node)
            return type(a)(self._value(x, y, node) for x, y in zip(a, b, strict=True))
        if type(a) is type(b) and (a == b or (a != a and b != b)):
            return a
        if type(a) is int and type(b) is int:
            factor, rest = divmod(a, self._sizes[0])
            if not rest and b == factor * self._sizes[1]:
                return Batch(factor)
        raise DependsOnBatchError(node)


def _integers(function: Any) -> dict[str, bool]:
    """For each argument of an operator whether it takes integers, such as sizes."""
    if function is None:
        return {}
    return {each.name: "int" in str(each.real_type) for each in function._schema.arguments}


def tensor_of(module: nn.Module, path: str) -> Tensor:
    """The parameter or buffer of this name."""
    found: Any = reduce(getattr, path.split("."), module)
    tensor: Tensor = found
    return tensor


class Graph:
    """Computes nodes by torch's operators, which autograd records.

    Attributes:
        wanted: the nodes.
    """

    def __init__(self, wanted: Sequence[Node]) -> None:
        self.wanted = tuple(wanted)
        self._order = in_order(wanted)

    def __call__(
        self,
        cell: nn.Module,
        device: torch.device,
        rows: int,
        x: Tensor | None = None,
        draws: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """The values of the nodes.

        Args:
            cell: whose parameters and buffers are the leaves.
            device: where to make new tensors.
            rows: the number of rows, for the sizes that depend on it.
            x: the input of all rows `[rows, I]`, if a node depends on it.
            draws: the draws of all rows.
        """
        values: dict[int, Any] = {}

        def given(value: Any) -> Any:
            if isinstance(value, Node):
                return values[value.number]
            if isinstance(value, Batch):
                return value.factor * rows
            if isinstance(value, torch.device) and value.type == device.type:
                return device
            return value

        for node in self._order:
            if node.function is not None:
                args, kwargs = replaced(node.args, given), replaced_values(node.kwargs, given)
                if node.grad:
                    values[node.number] = node.function(*args, **kwargs)
                else:
                    with torch.no_grad():
                        values[node.number] = node.function(*args, **kwargs)
            elif node.item is not None:
                values[node.number] = values[node.args[0].number][node.item]
            else:
                values[node.number] = _leaf(node.leaf, cell, x, draws)
        return tuple([values[node.number] for node in self.wanted])


def _leaf(
    leaf: str | int | Tensor | None, cell: nn.Module, x: Tensor | None, draws: Sequence[Tensor]
) -> Tensor | None:
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, int):
        return draws[leaf]
    assert leaf is not None
    return x if leaf == "x" else tensor_of(cell, leaf[1:])


def in_order(wanted: Sequence[Node]) -> list[Node]:
    """These nodes and all that they are computed from, arguments first."""
    found: dict[int, Node] = {}
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node.number not in found:
            found[node.number] = node
            waiting += node.arguments
    return [found[number] for number in sorted(found)]
