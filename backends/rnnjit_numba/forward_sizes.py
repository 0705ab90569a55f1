"""Sizes of the parts of the forward kernel's scratch memory: of packed weights, and of a row."""

from __future__ import annotations

from typing import NamedTuple

from rnnjit import LayerSpec
from rnnjit.codegen import Isa
from rnnjit.codegen.cell_layout import CellLayout, operand_size
from rnnjit.codegen.kernel import Kind


class ForwardSizes(NamedTuple):
    """Bytes of parts of the forward kernel's scratch memory, see `ForwardArguments`.

    Attributes:
        packed_inputs, packed_row, packed_out, packed: of packed weights.
        z: of a row of the memory for the pre-activations of a few rows; 0 where the cell needs
            none.
        row: of a row of input projections that are computed before the steps; 0 where they lie in
            y, and where weights are read in place.
    """

    packed_inputs: int
    packed_row: int
    packed_out: int
    packed: int
    z: int
    row: int

    @staticmethod
    def of(isa: Isa, kind: Kind, layer: LayerSpec, *, direct: bool) -> ForwardSizes:
        """Those of a layer.

        Args:
            isa: whose vectors the kernel uses.
            kind: of the kernel.
            layer: the layer.
            direct: whether weights are read in place, see `ForwardArguments.direct`.
        """
        cell, lanes, vector = CellLayout(layer.cell), isa.lanes(kind.computed), isa.vector_bytes
        features = layer.input_size, layer.hidden_size, layer.output_size, operand_size(layer)
        wide_h, wide_p = (-(-n // lanes) for n in features[1:3])
        # Blocks of as many column vectors, or of groups of terms of them, as there are lanes.
        blocks_i, blocks_h, _, blocks_k = (-(-n // (lanes * kind.terms)) for n in features)
        inputs = blocks_i * lanes * vector
        packed_row = inputs + blocks_k * lanes * vector
        out = blocks_h * lanes * vector if layer.proj_size else 0
        if direct or kind.quantized:
            inputs = packed_row = out = 0
        row, parts = wide_h * cell.gates * vector, 1 + cell.apart
        packed = wide_h * cell.gates * (packed_row + parts * vector)
        if layer.proj_size:
            packed += wide_p * (out + vector)
        z = parts * row
        if layer.proj_size:
            z += wide_h * lanes * kind.itemsize
            z += wide_p * vector if kind.itemsize < kind.computed else 0
        if cell.in_place and kind.itemsize == kind.computed and not kind.quantized:
            z = row = 0
        return ForwardSizes(inputs, packed_row, out, packed, z, 0 if direct else row)
