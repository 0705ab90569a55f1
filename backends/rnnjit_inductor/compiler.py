"""From a chunk's function to machine code: traced once with symbolic sizes, compiled by Inductor.

Inductor is called directly, by `torch._inductor.standalone_compile`, and not through
`torch.compile`. The result is a plain function without guards, so that a call costs 7 us instead of
24. It is never recompiled, does not count towards the caller's limit of recompilations, and is
neither reset nor disabled together with the caller's own compiled functions. Settings are patched
for this compilation only. Inductor's cache on disk is used, as by `torch.compile`.

torch._inductor is imported on the first compilation, which takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rnnjit.cells import Cell
from rnnjit.runtime import torch_private
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit_inductor.graphs import backward_chunk, forward_chunk, matrix_product, tile_product
from rnnjit_inductor.plan import MATRIX, Plan
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
    """

    pass_: Literal["forward", "backward"]
    cell: Cell
    dtype: torch.dtype
    device: str
    plan: Plan


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
    steps, tile, _ = key.plan
    product = matrix_product if tile == MATRIX else tile_product(tile)
    make = forward_chunk if key.pass_ == "forward" else backward_chunk
    with torch.no_grad(), warnings.catch_warnings():
        # Those of torch's own code, which the caller cannot change.
        warnings.simplefilter("ignore", DeprecationWarning)
        if key.device == "cpu":
            import_paths_quietly()
        from torch.fx.experimental.proxy_tensor import make_fx

        mode, arguments = _symbolic(key)
        chunk = make(key.cell, steps, product)
        # A lambda, since a graph keeps annotations, and Inductor's cache takes no strings.
        graph = make_fx(lambda *tensors: chunk(*tensors))(*arguments)
        return torch_private.compile_graph(graph, arguments, mode, _settings(key))


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

    def empty(shape: tuple[int, ...], *rows: int) -> Tensor:
        """A contiguous tensor, except for the strides of steps and rows if they are given."""
        result = torch.empty(shape, dtype=key.dtype, device=key.device)
        if not rows:
            return result
        step, row = rows
        return result.as_strided(shape, (step, q * row, row, *result.stride()[3:]))

    steps, (R, U, L), _ = key.plan
    q, P, H = symbol(_BATCH), symbol(_PANELS), symbol(_PANELS * U * L - 1)
    G = len(key.cell.gates)
    # The backward chunk reads all inputs of its program but the state's gradient as blocks.
    blocks = G if key.pass_ == "forward" else len(key.cell.backward.inputs) - 1
    strides = [(symbol(_STRIDE), symbol(_STRIDE)) for _ in range(blocks)]
    state = (R, q, U, P, L)
    with mode:
        laid = [empty((steps, *state), *own) for own in strides]
        return mode, [*laid, empty(state), *(empty((U, P, H, L)) for _ in range(G))]
