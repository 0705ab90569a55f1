"""Ahead-of-time programs: CUDA C++ source for a whole stack, for any CUDA compiler.

The source is simple: one product over all rows, then a block for each sequence. It is meant to be
read, changed and compiled anywhere; the kernels of `kernels` are faster.
"""

from __future__ import annotations

import torch

from rnnjit import RNNSpec
from rnnjit.artifact.template import fill
from rnnjit.artifact.weights import layout
from rnnjit.backend import Program
from rnnjit_cuda.c_pointwise import activation


def build(spec: RNNSpec, dtype: torch.dtype, name: str) -> Program:
    """`Backend.build`: the source and its header."""
    D, H, size = spec.num_directions, spec.hidden_size, dtype.itemsize
    options = {
        "activation": "\n    ".join(activation(spec.cell, dtype)),
        "weights": _table(spec, size),
        "fixed": H * H * size,
        "per_row": D * H * size if spec.num_layers > 1 else 0,
    }
    made = {
        f"{name}.{ending}": fill("rnnjit_cuda", f"program.{ending}", spec, dtype, name, **options)
        for ending in ("cu", "h")
    }
    return Program(made, {"language": "CUDA C++"}, {})


def _table(spec: RNNSpec, size: int) -> str:
    """The initializer of the table of weights."""
    places = iter(layout(spec, size).places)
    lines = []
    for layer in spec.layers:
        cells = []
        for _ in range(spec.num_directions):
            offsets = [next(places).offset for _ in range(layer.weights_per_direction)]
            offsets += [0] * (4 - len(offsets))
            cells.append(f"{{{', '.join(map(str, offsets))}, {layer.input_size}}}")
        lines.append(f"    {{{', '.join(cells)}}},")
    return "\n".join(lines)
