"""What is known of a step while it is traced: its tensors, nodes and expressions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.cells.blocks import Marks
from rnnjit.cells.expressions import Expression, Pool
from rnnjit.cells.graph import Depends, Graph, Node, replaced, replaced_values
from rnnjit.cells.refusals import Refuse, users_line


@dataclass
class Traced:
    """What a tensor of the trace is.

    Attributes:
        tensor: the tensor, which is kept alive, so that its id stays its own.
        node: its node, unless it depends on a state.
        marks: its marks, if it depends on a state or is a linear map of x.
        group: the tensors that may have the same memory, this one among them.
        stale: whether its memory was changed through another of them.
        split: what it shares with the parts of one tensor that have no memory in common with it.
        given: what it is to the user, if it is an argument of the step.
        parts: the tensors `[B, ...]` that lie beside each other in it, if they are no blocks.
    """

    tensor: Tensor
    node: Node | None
    marks: Tensor | None = None
    group: list[Traced] = field(default_factory=list)
    stale: bool = False
    split: object = None
    given: str = ""
    parts: tuple[Tensor, ...] = ()


class Trace:
    """The tensors of a step, by what they depend on.

    Args:
        cell: whose parameters and buffers are known.
        refuse: makes errors.
        B, I, H: rows, features and hidden units of the trace.
        dtype, device: those of the step.
    """

    def __init__(
        self,
        cell: nn.Module,
        refuse: Refuse,
        B: int,
        I: int,
        H: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.cell, self.refuse = cell, refuse
        self.B, self.input_size, self.H = B, I, H
        self.dtype, self.device = dtype, device
        self.pool, self.marks = Pool(), Marks(B, H)
        self.nodes: list[Node] = []
        self.draws: list[Node] = []
        self.x: Node | None = None
        #: While a user's own backward pass is traced, grad mode is off and stops no gradient.
        self.differentiating = False
        self._traced: dict[int, Traced] = {}
        self._known: dict[Any, Node] = {}
        tensors = [*cell.named_parameters(), *cell.named_buffers()]
        #: The cell with other tensors, as it may be at another call.
        self.sampled: Any = _Sampled(cell)
        self._own = {id(tensor): (name, tensor) for name, tensor in reversed(tensors)}

    def give_x(self, tensor: Tensor) -> None:
        """Make a tensor the input of the step."""
        self.x = self.node(Depends.X, tensor, leaf="x")
        self._traced[id(tensor)] = Traced(tensor, self.x, given="x")

    def give(self, tensor: Tensor, leaf: Expression, name: str = "") -> None:
        """Make a tensor `[B, H]` a leaf: a state, or a gradient."""
        layout = self.marks.layout(tensor.shape, 0)
        assert layout is not None
        marks = self.marks.write(layout, [leaf.number])
        self._traced[id(tensor)] = Traced(tensor, None, marks, given=name)

    def node(self, depends: Depends, like: Any, **what: Any) -> Node:
        """A new node."""
        node = Node(len(self.nodes), depends, like, users_line(), **what)
        self.nodes.append(node)
        return node

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        """The node of an operator on nodes; one that exists already is reused."""
        grad = torch.is_grad_enabled() or self.differentiating
        key = (function, grad, _key(args), _key(tuple(sorted(kwargs.items()))))
        if key not in self._known:
            with torch.no_grad():
                like = function(*replaced(args, _like), **replaced_values(kwargs, _like))
            given = Node(-1, Depends.CONSTANT, None, "", args=args, kwargs=kwargs).arguments
            depends = max((each.depends for each in given), default=Depends.CONSTANT)
            self._known[key] = self.node(
                depends, like, function=function, args=args, kwargs=kwargs, grad=grad
            )
        return self._known[key]

    def item(self, node: Node, number: int) -> Node:
        """The node of one of an operator's results."""
        key = ("item", node.number, number)
        if key not in self._known:
            self._known[key] = self.node(node.depends, node.like[number], args=(node,), item=number)
        return self._known[key]

    def constant(self, node: Node) -> Tensor:
        """The value of a node that depends on nothing."""
        (found,) = Graph([node])(self.cell, node.like.device, self.B)
        return found

    def sample(self, node: Node) -> Tensor:
        """A value that a node of parameters may have: they may be others at another call."""
        (found,) = Graph([node])(self.sampled, node.like.device, self.B)
        return found

    def look_up(self, tensor: Tensor, *, resolve: bool = True) -> Traced:
        """What a tensor is."""
        if resolve:
            self.resolve(tensor)
        found = self._traced.get(id(tensor))
        if found is not None:
            if found.stale:
                raise self.refuse(
                    "takes a tensor that was changed in place through another one",
                    "Compute a new tensor in place of changing one: v = v + a",
                )
            return found
        if id(tensor) in self._own:
            name = self._own[id(tensor)][0]
            node = self.node(Depends.PARAMETERS, tensor.detach(), leaf=f".{name}")
            self._traced[id(tensor)] = Traced(tensor, node, given=f"self.{name}")
            return self._traced[id(tensor)]
        held = next(
            (
                f"takes self.{prefix}{'.' if prefix else ''}{name}, which"
                for prefix, module in self.cell.named_modules()
                for name, value in vars(module).items()
                if value is tensor
            ),
            "takes a tensor from outside, which",
        )
        raise self.refuse(
            f"{held} is neither a parameter nor a buffer of the cell, so that changes of it "
            "would not be seen",
            "Register it: self.NAME = nn.Parameter(...) or self.register_buffer('NAME', ...)",
        )

    def resolve(self, tensor: Tensor) -> None:
        """Give the result of a user's own `autograd.Function` its gradient."""
        raise NotImplementedError

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Trace an operator on tensors of the trace, and return its result."""
        raise NotImplementedError

    @property
    def traced(self) -> list[Traced]:
        """Every tensor of the trace so far."""
        return list(self._traced.values())

    def keep(self, tensor: Tensor, node: Node | None, marks: Tensor | None = None) -> Tensor:
        """Note what a tensor is."""
        self._traced[id(tensor)] = Traced(tensor, node, marks)
        return tensor

    def share(self, bases: Sequence[Traced], results: Iterable[Tensor]) -> None:
        """Note that the results of an operator may have the memory of these tensors.

        Several results, as of chunk, are parts that lie apart, unless the tensor repeats itself.
        """
        repeats = any(_repeats(base.tensor) for base in bases)
        split = None if repeats or len(bases) != 1 else object()
        for tensor in results:
            result = self._traced[id(tensor)]
            result.split = split
            for base in bases:
                base.group = base.group or [base]
                base.group.append(result)
                result.group = base.group

    @staticmethod
    def change(target: Traced) -> None:
        """Note that the memory of a tensor gets other values."""
        for each in target.group:
            apart = each.split is not None and each.split is target.split
            each.stale = each.stale or not (apart or each is target)

    def literal(self, tensor: Tensor) -> Tensor:
        """A tensor that torch has just made from Python numbers."""
        like = tensor.detach()
        return self.keep(like, self.node(Depends.CONSTANT, like, leaf=tensor))

    def node_of(self, tensor: Tensor) -> Node:
        """The node of a tensor that depends on no state."""
        node = self.look_up(tensor).node
        assert node is not None
        return node

    def without_autograd(self, value: Any) -> Any:
        """A tensor of the cell as a constant; anything else as it is."""
        if isinstance(value, Tensor) and id(value) in self._own:
            return self.node_of(value).like
        return value

    def fresh(self, like: Tensor) -> Tensor:
        """A tensor like this one: itself, unless the user has it already."""
        if id(like) not in self._traced:
            return like
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)


def _repeats(tensor: Tensor) -> bool:
    """Whether elements of a tensor share memory, as after expand."""
    return any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


class _Sampled:
    """A module, with random numbers in the place of its floating-point tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, nn.Module):
            found = _Sampled(found)
        elif found.is_floating_point():
            generator = torch.Generator(device="cpu").manual_seed(0)
            drawn = torch.rand(found.shape, generator=generator, dtype=torch.float32, device="cpu")
            found = drawn.to(found.dtype).to(found.device)
        self.__dict__[name] = found  # for the next time
        return found


def _like(value: Any) -> Any:
    return value.like if isinstance(value, Node) else value


def _key(value: Any) -> Any:
    """A key of arguments that differs where they do."""
    if isinstance(value, Node):
        return ("node", value.number)
    if isinstance(value, (list, tuple)):
        return tuple(_key(each) for each in value)
    return (type(value), repr(value))


def tensors_of(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operator's arguments."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [each for each in value if isinstance(each, Tensor)]
    return found
