"""Traces one step of a user's cell: the operators of torch that it calls, one by one.

The step runs on tensors without data, below autograd. Each tensor is known by what it depends on.
What depends on a state is made of expressions (`rnnjit.cells.blocks`); all else is a node of a
graph of torch operators (`rnnjit.cells.graph`). A linear map of x is both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rnnjit.cells import expressions as source
from rnnjit.cells.blocks import Layout, Marks
from rnnjit.cells.expressions import Expression, Pool
from rnnjit.cells.functions import with_own_gradient
from rnnjit.cells.graph import Depends, Node, evaluate_nodes, replaced
from rnnjit.cells.pointwise import RULES, CannotExpressError
from rnnjit.cells.products import Products
from rnnjit.cells.refusals import MIXING, TAKEN, Refuse, operators_name, unknown, users_line
from rnnjit.ir.operations import Kind
from rnnjit.runtime.torch_private import TorchDispatchMode

aten: Any = torch.ops.aten

#: Operators that only move data: they are applied to the marks of a tensor.
MOVING = frozenset(
    (
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "split",
            "split_with_sizes",
            "slice",
            "select",
            "unbind",
        ),
        *("cat", "stack", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze", "alias"),
        *("clone", "contiguous", "flip", "roll", "repeat", "narrow", "chunk", "as_strided"),
        *("index_select", "movedim", "view_as", "_reshape_alias", "unsafe_split", "lift_fresh"),
        *("unsafe_chunk", "unsafe_split_with_sizes", "split_copy", "constant_pad_nd"),
    )
)
#: Why a state beside x is refused other than in a linear map, and what to do.
BESIDE = (
    "takes a state beside a tensor that does not consist of blocks of hidden_size columns",
    "Apply a linear map to each alone, and add: self.ih(x) + self.hh(h)",
)
#: Operators of which only the shape of the first argument matters, and what they fill with.
FILLING = {
    **dict.fromkeys(("zeros_like", "new_zeros", "empty_like", "new_empty"), 0.0),
    **dict.fromkeys(("ones_like", "new_ones"), 1.0),
    **dict.fromkeys(("full_like", "new_full")),
}


_HOOKS = ("Tensor.register_hook", "Tensor.retain_grad")


@dataclass
class Traced:
    """What a tensor of the trace is.

    Attributes:
        tensor: the tensor, which is kept alive, so that its id stays its own.
        node: its node, unless it depends on a state.
        marks: its marks, if it depends on a state or is a linear map of x.
        group: the tensors that may have the same memory, this one among them.
        stale: whether its memory was changed through another of them.
        given: what it is to the user, if it is an argument of the step.
        parts: the tensors `[B, ...]` that lie beside each other in it, if they are no blocks.
    """

    tensor: Tensor
    node: Node | None
    marks: Tensor | None = None
    group: list[Traced] = field(default_factory=list)
    stale: bool = False
    given: str = ""
    parts: tuple[Tensor, ...] = ()


class FunctionNames(TorchFunctionMode):
    """Notes which of torch's functions the user's code is in, for errors."""

    def __init__(self, refuse: Refuse) -> None:
        super().__init__()
        self._refuse, self._calls = refuse, refuse.calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        module, owner = getattr(func, "__module__", None), getattr(func, "__qualname__", "")
        if module == "torch.nn.functional":
            name = f"torch.nn.functional.{name}"
        elif owner.startswith(("Tensor", "_TensorBase", "TensorBase")) or module == "torch._tensor":
            name = f"Tensor.{name}"
        else:
            name = f"torch.{name}"
        self._calls.append(name)
        if name in _HOOKS:
            raise self._refuse(
                "would see the gradient of one step alone, which no backend gives it",
                "Change gradients by a torch.autograd.Function whose backward pass is pointwise",
            )
        found = func(*args, **(kwargs or {}))
        self._calls.pop()
        return found


class Tracer(TorchDispatchMode):  # type: ignore[misc]  # Any: torch may lack it
    """Sees every operator of a step.

    Args:
        cell: whose parameters and buffers are known.
        fake: the mode of tensors without data.
        refuse: makes errors.
        B, I, H: rows, features and hidden units of the trace.
        dtype, device: those of the step.
    """

    def __init__(
        self,
        cell: nn.Module,
        fake: Any,
        refuse: Refuse,
        B: int,
        I: int,
        H: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.input_size, self.device = I, device
        self.cell, self.fake, self.refuse, self.dtype = cell, fake, refuse, dtype
        self.B, self.H = B, H
        self.pool, self.marks = Pool(), Marks(B, H)
        self.nodes: list[Node] = []
        self.draws: list[Node] = []
        self.products = Products(self)
        self.x: Node | None = None
        self.error: Exception | None = None
        #: While a user's own backward pass is traced, grad mode is off and stops no gradient.
        self.differentiating = False
        self._traced: dict[int, Traced] = {}
        self._known: dict[Any, Node] = {}
        self._resolved: dict[int, object] = {}
        self._unresolved: set[int] = set()
        tensors = [*cell.named_parameters(), *cell.named_buffers()]
        self._own = {id(tensor): (name, tensor) for name, tensor in reversed(tensors)}

    # -- the arguments of the step ---------------------------------------------------------------

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

    # -- nodes -----------------------------------------------------------------------------------

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
            with self.fake:
                like = function(
                    *replaced(args, _like),
                    **{name: replaced(v, _like) for name, v in kwargs.items()},
                )
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
        """The value of a node that depends on nothing, or on parameters as they are now."""
        (found,) = evaluate_nodes([node], self.cell, node.like.device, self.B)
        return found

    # -- the operators ---------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return self.operator(func, args, kwargs or {})
        except Exception as error:
            # The user's code may catch it; the trace is then worth nothing.
            self.error = self.error or error
            raise

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Trace an operator."""
        name = func.overloadpacket.__name__
        if func.namespace == "prim":
            return args[0].device
        if name in ("lift_fresh", "lift") and id(args[0]) not in self._traced:
            return self._literal(args[0])
        if name == "detach":
            # Autograd detaches what it saves, amid a function's `apply`; gradients stop anyway.
            self._unresolved.add(id(args[0]))
        try:
            return self._dispatched(func, name, args, kwargs)
        finally:
            if name == "detach":
                self._unresolved.discard(id(args[0]))

    def _dispatched(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        given = [self.look_up(each) for each in _tensors(args, kwargs)]
        if name == "_local_scalar_dense" or name == "equal":
            raise self.refuse(*unknown(name))
        if func._schema.is_mutable:
            return self._in_place(func, name, args, kwargs, given)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, name, args, kwargs, given)
        if name in FILLING and given:
            return self._filled(func, name, args, kwargs)
        if any(each.parts and each.marks is None for each in given) and name not in ("mm", "addmm"):
            raise self.refuse(*BESIDE)
        if any(each.node is None for each in given):
            return self._on_states(func, name, args, kwargs)
        return self._on_nodes(func, name, args, kwargs, given)

    def look_up(self, tensor: Tensor, *, resolve: bool = True) -> Traced:
        """What a tensor is."""
        if resolve and id(tensor) not in self._unresolved:
            self._resolve(tensor)
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
            node = self.node(Depends.PARAMETERS, self.fake.from_tensor(tensor), leaf=f".{name}")
            self._traced[id(tensor)] = Traced(tensor, node, given=f"self.{name}")
            return self._traced[id(tensor)]
        held = next(
            (
                f"self.{prefix}{'.' if prefix else ''}{name} is a tensor that"
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

    def _resolve(self, tensor: Tensor) -> None:
        """Give the result of a user's own `autograd.Function` its gradient."""
        node = tensor.grad_fn
        own = isinstance(node, torch.autograd.function.BackwardCFunction)
        if own and not self.differentiating and id(node) not in self._resolved:
            self._resolved[id(node)] = node
            with_own_gradient(self, node, tensor)

    @property
    def traced(self) -> list[Traced]:
        """Every tensor of the trace so far."""
        return list(self._traced.values())

    def keep(self, tensor: Tensor, node: Node | None, marks: Tensor | None = None) -> Tensor:
        """Note what a tensor is."""
        self._traced[id(tensor)] = Traced(tensor, node, marks)
        return tensor

    @staticmethod
    def _share(bases: Iterable[Traced], result: Traced) -> None:
        """Note that a result may have the memory of these tensors."""
        for base in bases:
            base.group = base.group or [base]
            base.group.append(result)
            result.group = base.group

    def _literal(self, tensor: Tensor) -> Tensor:
        """A tensor that torch has just made from Python numbers."""
        with self.fake:
            like = self.fake.from_tensor(tensor)
        return self.keep(like, self.node(Depends.CONSTANT, like, leaf=tensor))

    def _node_of(self, tensor: Tensor) -> Node:
        node = self.look_up(tensor).node
        assert node is not None
        return node

    def _on_nodes(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], given: list[Traced]
    ) -> Any:
        """An operator on what does not depend on a state."""
        found = self.products.of_x(name, args, kwargs)
        if found is not None:
            return found
        node = self.call(
            func,
            *replaced(tuple(args), self._argument),
            **replaced_values(kwargs, self._argument),
        )
        views = _is_view(func)
        if isinstance(node.like, Tensor):
            outputs: list[Tensor] = [node.like]
            found_nodes = [node]
        else:
            outputs = list(node.like)
            found_nodes = [self.item(node, k) for k in range(len(outputs))]
        moved: list[Tensor | None] = [None] * len(outputs)
        if name in MOVING and all(each.marks is not None for each in given):
            moved = list(self._moved(func, args, kwargs))
        results = []
        for like, part, marks in zip(outputs, found_nodes, moved, strict=True):
            tensor = self.fresh(like)
            results.append(self.keep(tensor, part, marks))
            if views:
                self._share(given, self._traced[id(tensor)])
        return results[0] if isinstance(node.like, Tensor) else type(node.like)(results)

    def _without_data(self, value: Any) -> Any:
        if isinstance(value, Tensor) and id(value) in self._own:
            return self._node_of(value).like
        return value

    def fresh(self, like: Tensor) -> Tensor:
        """A tensor without data like this one: itself, unless the user has it already."""
        if id(like) not in self._traced:
            return like
        with self.fake:
            return torch.empty_strided(
                like.shape, like.stride(), dtype=like.dtype, device=like.device
            )

    def _argument(self, value: Any) -> Any:
        return self._node_of(value) if isinstance(value, Tensor) else value

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Sequence[Tensor]:
        """The marks of the results of an operator that moves data."""

        def marks(value: Any) -> Any:
            return self.look_up(value).marks if isinstance(value, Tensor) else value

        options = {k: replaced(v, marks) for k, v in kwargs.items() if k != "memory_format"}
        found = func(*replaced(tuple(args), marks), **options)
        return [found] if isinstance(found, Tensor) else list(found)

    def _filled(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Zeros, ones and the like: of the first argument, only the shape matters."""
        with self.fake:
            like = func(*replaced(tuple(args), self._without_data), **kwargs)
        value = FILLING[name]
        if value is None:
            value = args[-1] if "fill_value" not in kwargs else kwargs["fill_value"]
        options = {"dtype": like.dtype, "device": like.device}
        node = self.call(aten.full.default, list(like.shape), value, **options)
        return self.keep(self.fresh(like), node)

    def _in_place(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], given: list[Traced]
    ) -> Any:
        """An in-place operator on a tensor that nothing else shares: it gets a new value."""
        target = given[0] if given and given[0].tensor is args[0] else None
        plain = getattr(aten, name.rstrip("_"), None)
        out_of_place = getattr(plain, func._overloadname, None) if name.endswith("_") else None
        group = [] if target is None else target.group or [target]
        held = next((each.given for each in group if each.given), "")
        part = name in ("fill_", "copy_", "zero_", "index_put_") and any(
            each.node is None for each in given
        )
        if target is None or held or part:
            raise self.refuse(
                f"changes {held or 'a tensor'} in place, which is not traced",
                "Compute a new tensor: v = v + a, torch.cat, torch.where",
            )
        for each in group:
            each.stale = each is not target
        if torch.Tag.nondeterministic_seeded in func.tags:
            draw = self._draw(func, name, args, kwargs, given)
            target.node, target.marks = self.look_up(draw).node, None
            return args[0]
        if out_of_place is None:
            raise self.refuse(
                "changes a tensor in place, which is not traced", "Compute a new tensor"
            )
        found = self.operator(out_of_place, args, kwargs)
        new = self.look_up(found)
        if found.shape != args[0].shape or found.dtype != args[0].dtype:
            raise self.refuse("changes a tensor's shape or dtype in place", "Compute a new tensor")
        target.node, target.marks = new.node, new.marks
        return args[0]

    def _draw(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], given: list[Traced]
    ) -> Any:
        """A random draw. Of its tensors only the shape may matter."""
        by_shape = name.endswith(("_like", "_")) or name == "native_dropout"
        by_shape = by_shape or (name == "bernoulli" and func._overloadname == "p")
        if len(given) > 1 or (given and not by_shape):
            raise self.refuse(
                "draws from a distribution whose parameters are tensors",
                "Draw torch.rand_like or torch.randn_like, and compute with it: u < p for "
                "torch.bernoulli(p), mean + std * noise for torch.normal",
            )
        with self.fake:
            like = func(*replaced(tuple(args), self._without_data), **kwargs)

        def placeholder(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            # Ones, not the values: dropout multiplies by what it draws.
            options = {"dtype": value.dtype, "device": value.device}
            return self.call(aten.ones.default, list(value.shape), **options)

        number = len(self.draws)
        first = like[1] if name == "native_dropout" else like
        call = self.node(
            Depends.CONSTANT,
            like,
            function=func,
            args=replaced(tuple(args), placeholder),
            kwargs=kwargs,
        )
        drawn = self.item(call, 1) if name == "native_dropout" else call
        if not first.dim() or first.shape[0] != self.B or not first.is_contiguous():
            raise self.refuse(
                f"draws a tensor {list(first.shape)}, whose first dimension are not the rows",
                "Draw a tensor of [B, ...], as torch.randn_like(state) is",
            )
        self.draws.append(drawn)
        leaf = self.node(Depends.DRAWS, first, leaf=number)
        result = self.keep(self.fresh(first), leaf)
        if name != "native_dropout":
            return result
        scale = 1 / (1 - args[1]) if args[1] < 1 else 0.0
        mask = self.operator(aten._to_copy.default, (result,), {"dtype": args[0].dtype})
        mask = self.operator(aten.mul.Tensor, (mask, scale), {})
        return self.operator(aten.mul.Tensor, (args[0], mask), {}), result

    # -- what depends on a state -----------------------------------------------------------------

    def _on_states(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        found = self.products.of_state(name, args, kwargs)
        if found is not None:
            return found
        if name in MOVING:
            return self._move_states(func, name, args, kwargs)
        if name in ("_to_copy", "to"):
            return self._cast(args, kwargs, func)
        if name == "glu":
            return self._glu(*args, **kwargs)
        rule = RULES.get(name)
        if rule is None or (name == "max" and func._overloadname != "other"):
            why, remedy = unknown(name)
            if name in MIXING and args[1:] and args[1] in (0, [0]):
                why = "mixes the rows of the batch, which are sequences of their own"
            raise self.refuse(why, remedy, operation=self._name(name))
        with self.fake:
            like = func(
                *replaced(tuple(args), self._without_data),
                **replaced_values(kwargs, self._without_data),
            )
        first = like if isinstance(like, Tensor) else like[0]
        result = self._pointwise(rule, first, args, kwargs)
        if name == "detach":
            self._share([self.look_up(args[0])], self._traced[id(result)])
        return result if isinstance(like, Tensor) else (result, *map(self._unused, like[1:]))

    def _unused(self, like: Tensor) -> Tensor:
        return self.keep(
            like,
            self.call(aten.zeros.default, list(like.shape), dtype=like.dtype, device=like.device),
        )

    def _name(self, name: str) -> str:
        return self.refuse.calls[0] if self.refuse.calls else operators_name(name)

    def _pointwise(self, rule: Any, like: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A pointwise operator, block by block."""
        if like.dtype is not torch.bool and like.dtype is not self.dtype:
            raise self.refuse(
                f"gives {like.dtype} from a state of {self.dtype}",
                "Keep the dtype of the states: use tensors and .to(state.dtype) of that dtype",
            )
        layout = self._layout(like, args, kwargs)
        blocks = {id(each): self.blocks(each, layout) for each in _tensors(args, kwargs)}
        results = []
        for k in range(len(layout.places)):

            def given(value: Any, k: int = k) -> Any:
                return blocks[id(value)][k] if isinstance(value, Tensor) else value

            try:
                found = rule(
                    self.pool, *replaced(tuple(args), given), **replaced_values(kwargs, given)
                )
            except CannotExpressError as error:
                raise self.refuse(error.why, error.remedy) from None
            found = self.pool.expression(found)
            if like.dtype is torch.bool:
                found = self.pool.condition(found)
            results.append(self.stopped(found).number)
        return self.keep(self.fresh(like), None, self.marks.write(layout, results))

    def stopped(self, value: Expression) -> Expression:
        """The value as it is in this grad mode."""
        if torch.is_grad_enabled() or self.differentiating or not value.grad:
            return value
        if value.kind is Kind.CONDITION:
            return value
        return self.pool.append("detach", (value,))

    def _layout(self, like: Tensor, args: Any, kwargs: dict[str, Any]) -> Layout:
        """How the result of a pointwise operator lies: as its operands that depend on a state."""
        for each in _tensors(args, kwargs):
            traced = self.look_up(each)
            if traced.node is None:
                assert traced.marks is not None
                found = self.marks.read(torch.broadcast_to(traced.marks, like.shape))
                if found is None:
                    raise self.misplaced(traced.marks)
                return found[0]
        raise AssertionError("a pointwise operator on a state has one")

    def misplaced(self, marks: Tensor) -> Exception:
        """The error of a tensor whose marks do not lie row by row and unit by unit."""
        if self.marks.mixes_rows(marks):
            return self.refuse(
                "takes a state whose rows are not the batch's, one by one",
                "Keep states [B, ..., H]: take no single rows, and leave the batch dimension first",
            )
        return self.refuse(
            f"takes a state whose hidden units are not in their places; {TAKEN}",
            "Split states and gates only into blocks of hidden_size columns, by chunk, split, "
            "slices or unflatten(-1, (gates, hidden_size))",
        )

    def blocks(self, tensor: Tensor, layout: Layout) -> list[Expression]:
        """A tensor's expressions in a layout that it broadcasts to."""
        traced = self.look_up(tensor)
        if traced.marks is not None:
            found = self.marks.read(torch.broadcast_to(traced.marks, layout.shape))
            if found is not None and found[0] == layout:
                return [self.pool.values[number] for number in found[1]]
            if traced.node is None:
                raise self.misplaced(traced.marks)
        assert traced.node is not None
        return self.leaves(traced.node, layout)

    def leaves(self, node: Node, layout: Layout) -> list[Expression]:
        """A node's expressions in a layout: parameters, row inputs or constants."""
        if node.depends > Depends.PARAMETERS:
            return [self._row_input(node, layout, *place) for place in layout.places]
        if node.depends is Depends.CONSTANT:
            value = self.constant(node)
            if value.numel() and bool((value == value.flatten()[0]).all()):
                return [self.pool.expression(float(value.flatten()[0]))] * len(layout.places)
        return [self._parameter(node, layout, *place) for place in layout.places]

    def _parameter(
        self, node: Node, layout: Layout, leading: tuple[int, ...], block: int
    ) -> Expression:
        """The leaf of a parameter: of a tensor that depends on no row, what one block needs."""
        index = [*leading[: layout.batch], 0, *leading[layout.batch :]]
        missing = len(layout.shape) - len(node.shape)
        if missing <= layout.batch and node.shape[layout.batch - missing] not in (1,):
            rows = self.constant(node).movedim(layout.batch - missing, 0)
            if not bool(((rows == rows[:1]) | (rows != rows)).all()):
                raise self.refuse(
                    f"takes a tensor {list(node.shape)} of parameters that is not the same in "
                    "each row of the batch",
                    "Give the cell vectors of [H]; what differs between rows comes with x",
                )
        for place in index[max(missing, 0) :]:
            node = self.call(aten.select.int, node, 0, place if node.shape[0] > 1 else 0)
        return self.pool.leaf(source.PARAMETER, node=self._columns(node, layout, block))

    def _row_input(
        self, node: Node, layout: Layout, leading: tuple[int, ...], block: int
    ) -> Expression:
        """The leaf of a row input: of a tensor that differs between rows, what one block needs."""
        if tuple(node.shape) != layout.shape:
            node = self.call(aten.expand.default, node, list(layout.shape))
        for before, place in enumerate(leading):
            node = self.call(aten.select.int, node, 0 if before < layout.batch else 1, place)
        found = source.DRAW if node.depends is Depends.DRAWS else source.ROW
        return self.pool.leaf(found, node=self._columns(node, layout, block))

    def _columns(self, node: Node, layout: Layout, block: int) -> Node:
        """One block of a node's columns, in the dtype of the step."""
        if node.like.dtype is not self.dtype:
            node = self.call(aten._to_copy.default, node, dtype=self.dtype)
        shape = [*node.shape[:-1], self.H]
        if not node.shape or (node.shape[-1] == 1 and layout.shape[-1] > 1):
            return self.call(aten.expand.default, node, shape)
        if node.shape[-1] != self.H:
            node = self.call(aten.slice.Tensor, node, -1, block * self.H, (block + 1) * self.H)
        return node

    def _move_states(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operator that only moves data."""
        tensors = list(_tensors(args, kwargs))
        own = [self.look_up(each) for each in tensors]
        # One linear map may follow, of a state and x beside each other.
        beside = name == "cat" and any(each.node is not None for each in own)
        beside = beside and all(each.dim() == 2 for each in tensors) and args[1:] in ((1,), (-1,))
        batch = None
        for each in own:
            if each.marks is not None and (found := self.marks.read(each.marks)):
                batch = found[0].batch
        for tensor, each in zip(tensors, own, strict=True):
            if each.marks is None:
                layout = None if batch is None else self.marks.layout(tensor.shape, batch)
                if layout is None and beside:
                    return self._beside(func, args, kwargs, tensors)
                if layout is None or name not in ("cat", "stack"):
                    raise self.refuse(*BESIDE)
                assert each.node is not None
                numbers = [leaf.number for leaf in self.leaves(each.node, layout)]
                each.marks = self.marks.write(layout, numbers)
        with self.fake:
            like = func(*replaced(tuple(args), self._without_data), **kwargs)
        likes = [like] if isinstance(like, Tensor) else list(like)
        if any(each.dtype not in (self.dtype, torch.bool) for each in likes):
            raise self.refuse(f"gives {likes[0].dtype}", "Keep the dtype of the states")
        moved = self._moved(func, args, kwargs)
        results = []
        for one, marks in zip(likes, moved, strict=True):
            results.append(self.keep(self.fresh(one), None, self._kept(marks)))
            self._share(own, self._traced[id(results[-1])])
        if beside:
            self._traced[id(results[0])].parts = tuple(tensors)
        return results[0] if isinstance(like, Tensor) else type(like)(results)

    def _beside(self, func: Any, args: Any, kwargs: dict[str, Any], parts: list[Tensor]) -> Tensor:
        """A state and x beside each other, for one linear map of both."""
        with self.fake:
            like = func(*replaced(tuple(args), self._without_data), **kwargs)
        result = self.keep(self.fresh(like), None)
        self._traced[id(result)].parts = tuple(parts)
        return result

    def _kept(self, marks: Tensor) -> Tensor:
        """Marks after a move; grad mode off stops their gradients."""
        if torch.is_grad_enabled() or self.differentiating:
            return marks
        found = self.marks.read(marks)
        if found is None:
            raise self.misplaced(marks)
        stopped = [self.stopped(self.pool.values[number]).number for number in found[1]]
        return self.marks.write(found[0], stopped)

    def _cast(self, args: Any, kwargs: dict[str, Any], func: Any) -> Tensor:
        """A cast: of a condition to a number, or one that changes nothing."""
        tensor, dtype = args[0], kwargs.get("dtype") or args[0].dtype
        traced = self.look_up(tensor)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != tensor.device.type:
            raise self.refuse("moves a state to another device", "Keep states on their device")
        if not dtype.is_floating_point and dtype is not torch.bool:
            raise self.refuse(
                f"makes a state of {dtype}; states and what depends on them are floating-point",
                "Keep numbers such as counts in the dtype of the state",
            )
        assert traced.marks is not None
        found = self.marks.read(traced.marks)
        if found is None:
            raise self.misplaced(traced.marks)
        values = [self.pool.values[number] for number in found[1]]
        if dtype is torch.bool:
            values = [self.pool.condition(each) for each in values]
        elif dtype is not self.dtype and tensor.dtype is not torch.bool:
            raise self.refuse(
                f"changes a state from {tensor.dtype} to {dtype}",
                "Keep the dtype of the states, or convert the whole module with .to(dtype)",
            )
        else:
            values = [self.pool.number(each) for each in values]
        with self.fake:
            like = func(self._without_data(tensor), **kwargs)
        numbers = [self.stopped(each).number for each in values]
        return self.keep(self.fresh(like), None, self.marks.write(found[0], numbers))

    def _glu(self, tensor: Tensor, dim: int = -1) -> Tensor:
        size = tensor.shape[dim] // 2
        first, second = self.operator(aten.split.Tensor, (tensor, size, dim), {})
        gate = self.operator(aten.sigmoid.default, (second,), {})
        found: Tensor = self.operator(aten.mul.Tensor, (first, gate), {})
        return found

    # -- results ---------------------------------------------------------------------------------

    def result(self, tensor: Any, what: str) -> Expression:
        """The expression of a result of the step, which must be `[B, H]`."""
        if not isinstance(tensor, Tensor):
            raise self.refuse(
                f"is {type(tensor).__name__}, not a tensor [B, {self.H}]",
                "Return the output and the new states as tensors",
                operation=what,
            )
        traced = self.look_up(tensor)
        layout = self.marks.layout((self.B, self.H), 0)
        assert layout is not None
        if tuple(tensor.shape) != (self.B, self.H):
            sizes = list(map(str, tensor.shape))
            shape = ", ".join(["B", *sizes[1:]] if tensor.shape[:1] == (self.B,) else sizes)
            raise self.refuse(
                f"is [{shape}], and must be [B, {self.H}]: a value for each hidden unit",
                "Apply what changes the shape, such as a readout, to the output of the layer",
                operation=what,
            )
        if tensor.dtype is not self.dtype and (
            traced.node is None or tensor.dtype is not torch.bool
        ):
            raise self.refuse(
                f"is {tensor.dtype}, and must be {self.dtype}",
                "Return the dtype of the states: .to(state.dtype)",
                operation=what,
            )
        (found,) = self.blocks(tensor, layout)
        if found.kind is Kind.CONDITION:
            raise self.refuse("is bool", "Return .to(state.dtype) of it", operation=what)
        return found


def _like(value: Any) -> Any:
    return value.like if isinstance(value, Node) else value


def replaced_values(kwargs: dict[str, Any], replace: Any) -> dict[str, Any]:
    """The keyword arguments with everything in them replaced."""
    return {name: replaced(value, replace) for name, value in kwargs.items()}


def _key(value: Any) -> Any:
    """A key of arguments that differs where they do."""
    if isinstance(value, Node):
        return ("node", value.number)
    if isinstance(value, (list, tuple)):
        return tuple(_key(each) for each in value)
    return (type(value), repr(value))


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [each for each in value if isinstance(each, Tensor)]
    return found


def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None for each in func._schema.returns)
