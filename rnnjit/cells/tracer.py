"""Traces one step of a user's cell: the operators of torch that it calls, one by one.

The step runs on zeros; no value has an influence. Each tensor is known by what it depends on.
What depends on a state is made of expressions (`rnnjit.cells.blocks`); all else is a node of a
graph of torch operators (`rnnjit.cells.graph`). A linear map of x is both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rnnjit.cells.expressions import Expression
from rnnjit.cells.functions import with_own_gradient
from rnnjit.cells.graph import Depends, replaced, replaced_values
from rnnjit.cells.products import Products
from rnnjit.cells.refusals import Refuse, unknown
from rnnjit.cells.state_operators import BESIDE, MOVING, StateOperators
from rnnjit.cells.trace import Traced, tensors_of
from rnnjit.ir.operations import Kind
from rnnjit.runtime.torch_private import TorchDispatchMode

aten: Any = torch.ops.aten

#: Operators of which only the shape of the first argument matters, and what they fill with.
FILLING = {
    **dict.fromkeys(("zeros_like", "new_zeros", "empty_like", "new_empty"), 0.0),
    **dict.fromkeys(("ones_like", "new_ones"), 1.0),
    **dict.fromkeys(("full_like", "new_full")),
}
#: Functions that hand out what only the tensors of a real step have.
_LEAVING = frozenset(
    f"Tensor.{name}"
    for name in (
        *("numpy", "tolist", "data_ptr", "storage", "untyped_storage", "share_memory_"),
        *("__array__", "__array_wrap__", "__dlpack__", "__reduce_ex__", "__deepcopy__"),
    )
)
_HOOKS = ("Tensor.register_hook", "Tensor.retain_grad")


class FunctionNames(TorchFunctionMode):
    """Notes which of torch's functions the user's code is in, for errors."""

    def __init__(self, refuse: Refuse) -> None:
        super().__init__()
        self._refuse, self._calls = refuse, refuse.calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._refuse.inside:  # a call of the tracer's own
            return func(*args, **(kwargs or {}))
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
        if name in _LEAVING:
            raise self._refuse(
                "takes a tensor's values out of torch, but one trace serves all values",
                "Compute with torch's operators, and use torch.where for a choice by value",
            )
        found = func(*args, **(kwargs or {}))
        self._calls.pop()
        return found


class Tracer(StateOperators):
    """Traces the operators of a step."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.products = Products(self)
        self.error: Exception | None = None
        self._resolved: dict[int, object] = {}
        self._unresolved: set[int] = set()

    def mode(self) -> Any:
        """The mode under which operators are traced."""
        return _Mode(self)

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Trace an operator on tensors of the trace, and return its result."""
        name = func.overloadpacket.__name__
        if func.namespace == "prim":
            return args[0].device
        if name in ("lift_fresh", "lift") and id(args[0]) not in self._traced:
            return self.literal(args[0])
        if name == "detach":
            # Autograd detaches what it saves, amid a function's `apply`; gradients stop anyway.
            self._unresolved.add(id(args[0]))
        try:
            return self._dispatched(func, name, args, kwargs)
        finally:
            if name == "detach":
                self._unresolved.discard(id(args[0]))

    def _dispatched(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        given = [self.look_up(each) for each in tensors_of(args, kwargs)]
        if name == "_local_scalar_dense" or name == "equal":
            raise self.refuse(*unknown(name))
        if _shape_by_value(func, name, given):
            raise self.refuse(*unknown("nonzero"))
        if func._schema.is_mutable:
            return self._in_place(func, name, args, kwargs, given)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, name, args, kwargs, given)
        if name in FILLING and given:
            return self._filled(func, name, args, kwargs)
        if any(each.parts and each.marks is None for each in given) and name not in ("mm", "addmm"):
            raise self.refuse(*BESIDE)
        if any(each.node is None for each in given):
            product = self.products.of_state(name, args, kwargs)
            return self.on_states(func, name, args, kwargs) if product is None else product
        return self._on_nodes(func, name, args, kwargs, given)

    def resolve(self, tensor: Tensor) -> None:
        """Give the result of a user's own `autograd.Function` its gradient."""
        node = tensor.grad_fn
        if id(tensor) in self._unresolved:
            return
        own = isinstance(node, torch.autograd.function.BackwardCFunction)
        if own and not self.differentiating and id(node) not in self._resolved:
            self._resolved[id(node)] = node
            with_own_gradient(self, node, tensor)

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
        if isinstance(node.like, Tensor):
            outputs: list[Tensor] = [node.like]
            found_nodes = [node]
        else:
            outputs = list(node.like)
            found_nodes = [self.item(node, k) for k in range(len(outputs))]
        moved: list[Tensor | None] = [None] * len(outputs)
        if name in MOVING and all(each.marks is not None for each in given):
            moved = list(self.moved(func, args, kwargs))
        results = []
        for like, part, marks in zip(outputs, found_nodes, moved, strict=True):
            tensor = self.fresh(like)
            results.append(self.keep(tensor, part, marks))
        if _is_view(func):
            self.share(given, results)
        return results[0] if isinstance(node.like, Tensor) else type(node.like)(results)

    def _argument(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def _filled(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Zeros, ones and the like: of the first argument, only the shape matters."""
        like = func(*replaced(tuple(args), self.without_autograd), **kwargs)
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
        out_of_place = _out_of_place(func, name)
        group = [] if target is None else target.group or [target]
        held = next((each.given for each in group if each.given), "")
        part = name in ("fill_", "copy_", "zero_", "index_put_") and any(
            each.node is None for each in given
        )
        if target is None or held or part:
            remedy = "Compute a new tensor: v = v + a, torch.cat, torch.where"
            if held.startswith("self."):
                remedy = (
                    "Return what changes from step to step as a state; statistics of a batch, as "
                    "in BatchNorm, come from outside of the cell"
                )
            raise self.refuse(f"changes {held or 'a tensor'} in place, which is not traced", remedy)
        self.change(target)
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
        like = _drawn_like(func, args, kwargs, self.device)

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
                "Split gates, as by chunk(G, -1); apply what changes the shape, such as a readout, "
                "to the output of the layer",
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


def _shape_by_value(func: Any, name: str, given: list[Traced]) -> bool:
    """Whether the shape of an operator's result depends on values."""
    if name == "index":
        return any(each.tensor.dtype in (torch.bool, torch.uint8) for each in given[1:])
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return any(tag in func.tags for tag in tags)


def _drawn_like(func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
    """The result of a draw that leaves the state of the generators as it is."""

    def given(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    options = {name: None if name == "generator" else each for name, each in kwargs.items()}
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        return func(*replaced(tuple(args), given), **options)


def _out_of_place(func: Any, name: str) -> Any:
    """The operator that computes what an in-place one writes, or None.

    Its overload may have another name: `pow_.Scalar` writes what `pow.Tensor_Scalar` computes.
    """
    plain = getattr(aten, name.rstrip("_"), None) if name.endswith("_") else None
    for overload in plain.overloads() if plain is not None else ():
        found = getattr(plain, overload)
        if _arguments(found) == _arguments(func):
            return found
    return None


def _arguments(func: Any) -> list[tuple[str, str]]:
    return [(each.name, str(each.type)) for each in func._schema.arguments]


def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None for each in func._schema.returns)


_Base: Any = TorchDispatchMode or object


class _Mode(_Base):  # type: ignore[misc]  # Any: torch may lack it
    """Gives every operator to a tracer."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To skip it, torch imports its compiler, for seconds; no step is traced while it compiles.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        refuse = self._tracer.refuse
        before, refuse.inside = refuse.inside, True
        try:
            return self._tracer.operator(func, args, kwargs or {})
        except Exception as error:
            # The user's code may catch it; the trace is then worth nothing.
            self._tracer.error = self._tracer.error or error
            raise
        finally:
            refuse.inside = before
