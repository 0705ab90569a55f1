"""The operands of a pointwise operator, block by block, as expressions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnjit.cells import expressions as source
from rnnjit.cells.blocks import Layout
from rnnjit.cells.expressions import Expression
from rnnjit.cells.graph import Depends, Node
from rnnjit.cells.refusals import TAKEN
from rnnjit.cells.trace import Trace
from rnnjit.ir.operations import Kind

aten: Any = torch.ops.aten


class Operands(Trace):
    """A trace that reads tensors as expressions."""

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
            rows = self.sample(node).movedim(layout.batch - missing, 0)
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

    def stopped(self, value: Expression) -> Expression:
        """The value as it is in this grad mode."""
        if torch.is_grad_enabled() or self.differentiating or not value.grad:
            return value
        if value.kind is Kind.CONDITION:
            return value
        return self.pool.append("detach", (value,))
