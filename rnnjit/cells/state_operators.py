"""Operators on what depends on a state: pointwise ones, and those that move data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.cells.blocks import Layout
from rnnjit.cells.graph import replaced, replaced_values
from rnnjit.cells.operands import Operands
from rnnjit.cells.pointwise import RULES, CannotExpressError
from rnnjit.cells.refusals import MIXING, operators_name, unknown
from rnnjit.cells.trace import tensors_of

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


class StateOperators(Operands):
    """A trace of operators on states."""

    def on_states(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operator that is no matrix product."""
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
        like = func(
            *replaced(tuple(args), self.without_autograd),
            **replaced_values(kwargs, self.without_autograd),
        )
        first = like if isinstance(like, Tensor) else like[0]
        result = self._pointwise(rule, first, args, kwargs)
        if name == "detach":
            self.share([self.look_up(args[0])], self._traced[id(result)])
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
        blocks = {id(each): self.blocks(each, layout) for each in tensors_of(args, kwargs)}
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

    def _layout(self, like: Tensor, args: Any, kwargs: dict[str, Any]) -> Layout:
        """How the result of a pointwise operator lies: as its operands that depend on a state."""
        for each in tensors_of(args, kwargs):
            traced = self.look_up(each)
            if traced.node is None:
                assert traced.marks is not None
                found = self.marks.read(torch.broadcast_to(traced.marks, like.shape))
                if found is None:
                    raise self.misplaced(traced.marks)
                return found[0]
        raise AssertionError("a pointwise operator on a state has one")

    def _move_states(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operator that only moves data."""
        tensors = list(tensors_of(args, kwargs))
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
        like = func(*replaced(tuple(args), self.without_autograd), **kwargs)
        likes = [like] if isinstance(like, Tensor) else list(like)
        if any(each.dtype not in (self.dtype, torch.bool) for each in likes):
            raise self.refuse(f"gives {likes[0].dtype}", "Keep the dtype of the states")
        moved = self.moved(func, args, kwargs)
        results = []
        for one, marks in zip(likes, moved, strict=True):
            results.append(self.keep(self.fresh(one), None, self._kept(marks)))
            if not name.startswith("unsafe_"):  # torch promises that nobody sees shared memory
                self.share(own, self._traced[id(results[-1])])
        if beside:
            self._traced[id(results[0])].parts = tuple(tensors)
        return results[0] if isinstance(like, Tensor) else type(like)(results)

    def _beside(self, func: Any, args: Any, kwargs: dict[str, Any], parts: list[Tensor]) -> Tensor:
        """A state and x beside each other, for one linear map of both."""
        like = func(*replaced(tuple(args), self.without_autograd), **kwargs)
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

    def moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Sequence[Tensor]:
        """The marks of the results of an operator that moves data."""

        def marks(value: Any) -> Any:
            return self.look_up(value).marks if isinstance(value, Tensor) else value

        options = {k: replaced(v, marks) for k, v in kwargs.items() if k != "memory_format"}
        found = func(*replaced(tuple(args), marks), **options)
        return [found] if isinstance(found, Tensor) else list(found)

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
        like = func(self.without_autograd(tensor), **kwargs)
        numbers = [self.stopped(each).number for each in values]
        return self.keep(self.fresh(like), None, self.marks.write(found[0], numbers))

    def _glu(self, tensor: Tensor, dim: int = -1) -> Tensor:
        size = tensor.shape[dim] // 2
        first, second = self.operator(aten.split.Tensor, (tensor, size, dim), {})
        gate = self.operator(aten.sigmoid.default, (second,), {})
        found: Tensor = self.operator(aten.mul.Tensor, (first, gate), {})
        return found
