"""From a chunk's function to machine code: traced once with symbolic sizes, compiled by Inductor.

Inductor is called directly, by `torch._inductor.standalone_compile`, and not through
`torch.compile`. The result is a plain function without guards, so that a call costs 7 us instead of
24. It is never recompiled, does not count towards the caller's limit of recompilations, and is
neither reset nor disabled together with the caller's own compiled functions. Settings are patched
for this compilation only. Inductor's cache on disk is used, as by `torch.compile`; before that, on
the CPU, that of `library_cache`.

torch._inductor is imported on the first compilation, which takes seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rnnjit.ir import CellSpec
from rnnjit.runtime import torch_private
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit_inductor import library_cache
from rnnjit_inductor.graphs import (
    MATRIX_PRODUCT,
    TILE_PRODUCT,
    Form,
    backward_chunk,
    biased,
    forward_chunk,
)
from rnnjit_inductor.plan import MATRIX, Plan
from rnnjit_inductor.programs import backward_of, read_by_backward, step_of
from rnnjit_inductor.toolchain import import_paths_quietly

#: Called with a chunk's tensors, in the order of `rnnjit_inductor.graphs`.
Compiled = Callable[..., tuple[Tensor, ...]]

# Size hints for tracing. They only decide which loops are worth several threads.
_BATCH, _PANELS = 16, 8
_STRIDE = 1_000


class Key(NamedTuple):
    """All that compiled code depends on: not on T, B, I, H or the sizes of a packed batch.

    Attributes:
        pass_: which recurrence.
        cell: what a step computes; equal cells have one code.
        dtype: of all tensors.
        device: type of the device.
        plan: what is compiled.
        projected: whether outputs are projected.
        recorded: whether the states after every step have gradients.
    """

    pass_: Literal["forward", "backward"]
    cell: CellSpec
    dtype: torch.dtype
    device: str
    plan: Plan
    projected: bool = False
    recorded: bool = False


class CompilationError(RuntimeError):
    """Inductor failed to compile a chunk; its own error is the cause."""


def compiled(key: Key) -> Compiled:
    """The code for a key, compiled on the first call in this process.

    Raises:
        CompilationError: Inductor failed.
    """
    return _chunk(key)


@CompileOnce
def _chunk(key: Key) -> Compiled:
    try:
        return _compile(key)
    except Exception as error:
        raise CompilationError(
            f"backend 'inductor' could not compile {key.cell.name} {key.pass_} steps for "
            f"{key.dtype} on {key.device}: {type(error).__name__}: {error}"
        ) from error


def _compile(key: Key) -> Compiled:
    settings = _settings(key)
    facts = (*(fact for fact in key if fact is not key.cell), key.cell.digest, settings)
    name = library_cache.name_of(*facts) if key.device == "cpu" else None
    if name is None:
        return _by_inductor(key, settings)
    kept: Compiled | None = library_cache.load(name)
    if kept is not None:
        return kept
    before = torch_private.libraries()
    made = _by_inductor(key, settings)
    alone: Compiled | None = library_cache.keep(name, before, lambda each: _agree(key, made, each))
    return made if alone is None else alone


def _by_inductor(key: Key, settings: dict[str, Any]) -> Compiled:
    """Trace a chunk and compile it."""
    steps, tile, _ = key.plan
    product = MATRIX_PRODUCT if tile == MATRIX else TILE_PRODUCT
    make = forward_chunk if key.pass_ == "forward" else backward_chunk
    with torch.no_grad(), warnings.catch_warnings():
        # Those of torch's own code, which the caller cannot change.
        warnings.simplefilter("ignore", DeprecationWarning)
        if key.device == "cpu":
            import_paths_quietly()
        from torch.fx.experimental.proxy_tensor import make_fx

        mode, arguments = _symbolic(key)
        chunk = make(Form(key.cell, steps, product, key.projected, key.recorded))
        # A lambda, since a graph keeps annotations, and Inductor's cache takes no strings.
        graph = make_fx(lambda *tensors: chunk(*tensors))(*arguments)
        return torch_private.compile_graph(graph, arguments, mode, settings)


def _agree(key: Key, made: Compiled, alone: Compiled) -> bool:
    """Whether a chunk gives the same results when it is called without Inductor."""
    with torch.no_grad():
        shape = _Shape(key, lambda hint: min(hint, 2))
        sizes = [math.prod(each) for each in shape.tensors]
        # No random numbers, since the generator is the user's.
        values = [torch.linspace(-1, 1, n, dtype=key.dtype, device=key.device) for n in sizes]
        given = [own.view(each) for own, each in zip(values, shape.tensors, strict=True)]
        pairs = zip(made(*given), alone(*given), strict=True)
        return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)


def _settings(key: Key) -> dict[str, Any]:
    """Inductor's settings for one compilation."""
    settings: dict[str, Any] = {"compile_threads": 1}  # there is one kernel: no pool of processes
    if key.device == "cpu":
        settings |= {
            "cpp_wrapper": True,
            "cpp.threads": key.plan.threads,
            # A product and a sum become one multiply-add, as in every GEMM.
            "cpp.enable_floating_point_contract_flag": "fast",
            # A product's operands are computed before it, and not anew for each vector of columns.
            "realize_reads_threshold": 1,
        }
    return settings


def _symbolic(key: Key) -> tuple[Any, list[Any]]:
    """Fake tensors with symbolic sizes and strides, and the mode that they belong to."""
    mode = torch_private.symbolic_mode()

    def symbol(hint: int) -> int:
        return torch_private.symbolic_size(mode, hint)

    shape = _Shape(key, symbol)
    strides = [(symbol(_STRIDE), symbol(_STRIDE)) for _ in range(shape.blocks)]
    with mode:
        found = [torch.empty(each, dtype=key.dtype, device=key.device) for each in shape.tensors]
        for k, (step, row) in enumerate(strides):
            q, inner = found[k].shape[2], found[k].stride()[3:]
            found[k] = found[k].as_strided(found[k].shape, (step, q * row, row, *inner))
    return mode, found


class _Shape:
    """The shapes of a chunk's tensors.

    Args:
        key: the chunk.
        size: gives a size; the argument is one that it may have.

    Attributes:
        tensors: of all tensors, in the order of `rnnjit_inductor.graphs`.
        blocks: how many of them, the first, are rows of K steps, with strides of their own.
    """

    def __init__(self, key: Key, size: Callable[[int], int]) -> None:
        steps, (R, L), _ = key.plan
        cell, q, self._cut = key.cell, size(_BATCH), key.plan.tile != MATRIX
        self._lanes, self._forward = L, key.pass_ == "forward"
        G, S = len(cell.gates), len(cell.states)

        def width() -> tuple[int, int]:
            """The panels of a row, and its features; without panels both are the features."""
            panels = size(_PANELS)
            return panels, size(_PANELS * L - 1) if self._cut else panels

        wide = width()
        narrow = width() if key.projected else wide  # of the first state
        if self._forward:
            read, program = [wide] * (G + len(cell.row_inputs)), step_of(cell, True)
        else:
            recorded = [wide] * (S - 1) if key.recorded else []
            read = [*[wide] * len(read_by_backward(cell)), narrow, *recorded]
            program = backward_of(cell, True, True)
        state = [(R, q, panels, L) for panels, _ in [*read, narrow, *[wide] * (S - 1)]]
        weights = self._matrix(G, wide, narrow) if cell.has_product else []
        weights += self._matrix(1, narrow, wide) if key.projected else []
        fixed = len(program.fixed.outputs) + (len(biased(cell)) if self._forward else 0)
        self.blocks = len(read)
        blocks = [(steps, *each) for each in state[: self.blocks]]
        self.tensors: list[tuple[int, ...]] = [*blocks, *state[self.blocks :], *weights]
        self.tensors += [(wide[0], L)] * fixed

    def _matrix(
        self, gates: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> list[tuple[int, ...]]:
        """A matrix, of which each gate has some rows, that rows of `columns` are multiplied by."""
        if not self._cut:
            return [(gates * rows[1], columns[1])]
        given, found = (columns, rows) if self._forward else (rows, columns)
        return [(found[0], given[1], self._lanes)] * gates
