"""Matrix products of a step: that of the recurrent operand, and linear maps of x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rnnjit.cells import expressions as source
from rnnjit.cells.expressions import Expression
from rnnjit.cells.graph import Depends, Node
from rnnjit.cells.refusals import TAKEN, users_line

if TYPE_CHECKING:
    from rnnjit.cells.tracer import Tracer

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class LinearMap:
    """A linear map by weights that depend on parameters alone.

    Attributes:
        weight: `[k*H, K]`.
        bias: `[k*H]`, or None.
        blocks: k.
        result: of a map of x, the node of its result.
    """

    weight: Node
    bias: Node | None
    blocks: int
    result: Node | None = None


class Products:
    """The products of a trace.

    Attributes:
        operand: the recurrent operand, if a state is multiplied.
        recurrent: the maps of the operand.
        of_input: the maps of x.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.operand: Expression | None = None
        self._where = ""
        self.recurrent: list[LinearMap] = []
        self.of_input: list[LinearMap] = []

    def of_x(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """The result of a linear map of x itself, if that is what the operator is; or None."""
        found = _product(name, args, kwargs)
        tracer = self._tracer
        if found is None or tracer.look_up(found.left).node is not tracer.x:
            return None
        if not torch.is_grad_enabled():  # no gradient passes: no backend computes that
            return None
        weight, bias = (self._node(each) for each in (found.right, found.bias))
        H = tracer.H
        if weight is None or weight.depends > Depends.PARAMETERS or weight.shape[1] % H:
            return None
        if found.bias is not None and (bias is None or bias.shape != weight.shape[1:]):
            return None
        if bias is not None and bias.depends > Depends.PARAMETERS:
            return None
        assert tracer.x is not None
        given = (tracer.x, weight) if bias is None else (bias, tracer.x, weight)
        function = aten.mm.default if bias is None else aten.addmm.default
        result = tracer.call(function, *given)
        blocks = weight.shape[1] // H
        number = _number(self.of_input, LinearMap(self._transposed(weight), bias, blocks, result))
        marks = self._marks(source.INPUT, number, blocks)
        return tracer.keep(tracer.fresh(result.like), result, marks)

    def of_state(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """The result of a product with a state; None if the operator is no matrix product."""
        found = _product(name, args, kwargs)
        if found is None:
            if name in ("mm", "addmm"):
                raise self._tracer.refuse(
                    "scales a product by alpha or beta", "Multiply after the product"
                )
            return None
        tracer = self._tracer
        left, right = tracer.look_up(found.left), tracer.look_up(found.right)
        if left.node is not None and right.node is None and found.bias is None:
            # W @ h.T is (h @ W.T).T
            factors = [self._operator(aten.t.default, each) for each in (found.right, found.left)]
            return self._operator(aten.t.default, self._operator(aten.mm.default, *factors))
        if right.node is None:
            raise tracer.refuse(
                f"multiplies two tensors that depend on states; {TAKEN}",
                "Multiply by a weight of parameters, or pointwise with *",
            )
        if right.node.depends > Depends.PARAMETERS:
            raise tracer.refuse(
                "multiplies a state by weights that depend on x or on a random draw",
                "Use weights of parameters alone, and let x act pointwise: x_gate * self.hh(h)",
            )
        if left.parts:
            return self._of_parts(found, left.parts)
        if left.node is not None:  # only the bias depends on a state
            plain = self._operator(aten.mm.default, found.left, found.right)
            return self._added(plain, found.bias)
        return self._recurrent(found, left.marks, right.node)

    def _of_parts(self, found: _Product, parts: tuple[Tensor, ...]) -> Tensor:
        """W [x, h] + b = W_x x + b + W_h h."""
        first, terms = 0, []
        for part in parts:
            last = first + part.shape[1]
            rows = self._tracer.operator(aten.slice.Tensor, (found.right, 0, first, last), {})
            terms.append((part, rows))
            first = last
        # x comes before the states, and has the bias.
        terms.sort(key=lambda term: self._tracer.look_up(term[0]).node is None)
        (part, rows), *others = terms
        factors = (part, rows) if found.bias is None else (found.bias, part, rows)
        function = aten.mm.default if found.bias is None else aten.addmm.default
        total = self._operator(function, *factors)
        for part, rows in others:
            total = self._operator(
                aten.add.Tensor, total, self._operator(aten.mm.default, part, rows)
            )
        return total

    def _recurrent(self, found: _Product, marks: Tensor | None, weight: Node) -> Tensor:
        tracer, H = self._tracer, self._tracer.H
        self._set_operand(self._operand(marks))
        if weight.shape[1] % H:
            raise tracer.refuse(
                f"maps a state to {weight.shape[1]} features, no multiple of the {H} hidden units",
                "For a low-rank weight multiply its factors first: F.linear(h, self.m @ self.n.T)",
            )
        bias = self._node(found.bias)
        own = bias is not None and bias.depends <= Depends.PARAMETERS
        own = own and bias is not None and bias.shape == weight.shape[1:]
        blocks = weight.shape[1] // H
        linear = LinearMap(self._transposed(weight), bias if own else None, blocks)
        number = _number(self.recurrent, linear)
        marks = self._marks(source.PRODUCT, number, blocks)
        like = torch.empty((tracer.B, blocks * H), dtype=tracer.dtype, device=weight.like.device)
        result = tracer.keep(like, None, marks)
        return result if own else self._added(result, found.bias)

    def _operator(self, function: Any, *args: Tensor) -> Tensor:
        found: Tensor = self._tracer.operator(function, args, {})
        return found

    def _added(self, product: Tensor, bias: Tensor | None) -> Tensor:
        return product if bias is None else self._operator(aten.add.Tensor, product, bias)

    def _operand(self, marks: Tensor | None) -> Expression:
        tracer = self._tracer
        assert marks is not None
        found = tracer.marks.read(marks)
        if found is None:
            raise tracer.misplaced(marks)
        layout, numbers = found
        if layout.leading or layout.batch:
            raise tracer.refuse(
                f"multiplies a state of shape {list(layout.shape)}",
                "Multiply states [B, H] by F.linear(state, weight)",
            )
        if layout.blocks > 1:
            raise tracer.refuse(
                f"multiplies {layout.blocks} states at once, and compiled cells have one recurrent "
                "operand [B, H]",
                "Keep the recurrent weight [G*H, H] of one state, or compile with backend='eager'",
            )
        return tracer.pool.number(tracer.pool.values[numbers[0]])

    def _set_operand(self, operand: Expression) -> None:
        refuse, wrong = self._tracer.refuse, operand.sources
        alone = "Multiply a pointwise function of the states and of parameters alone"
        if source.PRODUCT in wrong:
            raise refuse(
                "multiplies what depends on another product of a state: compiled cells have one "
                "stage of products",
                "Apply the gate after the product, as nn.GRU does: r * self.hh(h) in place of "
                "self.hh(r * h); or compile with backend='eager'",
            )
        if source.DRAW in wrong:
            raise refuse("multiplies a state with a random draw in it", alone)
        if wrong & {source.ROW, source.INPUT}:
            raise refuse(
                "multiplies a state with x in it",
                f"{alone}, and add self.ih(x) to it; scale a state by a function of x at the end "
                "of the step before, with that x as a column of it",
            )
        if source.STATE not in wrong:
            raise refuse("multiplies what depends on no state", alone)
        if self.operand is not None and self.operand.number != operand.number:
            raise refuse(
                "is a second product of a state, with another operand than the first "
                f"({self._where}): compiled cells have one recurrent operand",
                "Multiply one operand by all weights at once, or compile with backend='eager'",
            )
        if self.operand is None:
            self.operand, self._where = operand, users_line()

    def _marks(self, kind: str, number: int, blocks: int) -> Tensor:
        tracer = self._tracer
        layout = tracer.marks.layout((tracer.B, blocks * tracer.H), 0)
        assert layout is not None
        leaves = [tracer.pool.leaf(kind, (number, block)) for block in range(blocks)]
        return tracer.marks.write(layout, [tracer.stopped(leaf).number for leaf in leaves])

    def _node(self, tensor: Tensor | None) -> Node | None:
        return None if tensor is None else self._tracer.look_up(tensor).node

    def _transposed(self, node: Node) -> Node:
        """The node of the transposed matrix."""
        swaps = node.function is aten.t.default
        swaps = swaps or (
            node.function is aten.transpose.int and sorted(d % 2 for d in node.args[1:]) == [0, 1]
        )
        swaps = swaps or (
            node.function is aten.permute.default and [d % 2 for d in node.args[1]] == [1, 0]
        )
        if swaps and node.grad:
            found: Node = node.args[0]
            return found
        return self._tracer.call(aten.t.default, node)


@dataclass(frozen=True)
class _Product:
    left: Tensor
    right: Tensor
    bias: Tensor | None


def _number(maps: list[LinearMap], linear: LinearMap) -> int:
    """The number of a map among others, where it is appended if it is a new one."""
    if linear not in maps:
        maps.append(linear)
    return maps.index(linear)


def _product(name: str, args: Any, kwargs: dict[str, Any]) -> _Product | None:
    """The factors of a matrix product; None if it scales, or is none."""
    if name == "mm":
        return _Product(args[0], args[1], None)
    if name == "addmm" and all(value == 1 for value in (*args[3:], *kwargs.values())):
        return _Product(args[1], args[2], args[0])
    return None
