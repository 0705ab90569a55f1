"""The C header of a program: what its functions take, and what the memory that they take holds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch

from rnnjit import RNNSpec
from rnnjit.artifact.template import fill

_WIDTH = 98


def header(spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> bytes:
    """The header of a stack's program, as UTF-8."""
    states, real = spec.cell.states, f"const {name}_real *"
    given, written = [f"{state}0" for state in states], [f"{state}_n" for state in states]
    void, out = "const void *weights", f"{name}_real *"
    forward = (
        *("int64_t T", "int64_t B", "const int64_t *batch_sizes", f"{real}x"),
        *(f"{real}{state}" for state in given),
        *(void, f"{out}y", *(f"{out}{state}" for state in written), "void *scratch"),
    )
    step = (
        *("int64_t B", "const void *prepared", f"{real}x"),
        *(*(f"{out}{state}" for state in states), f"{out}y", "void *scratch"),
    )
    nulls = ["NULL"] * len(states)
    texts = {
        "target": target,
        "num_states": len(states),
        "forward_example": ", ".join(["T, B, NULL, x", *nulls, "weights, y", *written, "scratch"]),
        "step_example": ", ".join(["B, prepared, x", *states, "y", "scratch"]),
        "states_text": _states(spec),
        "state_sizes": "\n".join(
            f"    {name}_{state}_size = {size},"
            for state, size in zip(states, spec.layer(0).state_sizes, strict=True)
        ),
        "first_text": _arguments(spec, given, "or NULL for zeros", 13),
        "last_text": _arguments(spec, written, "written; may be the memory of {}0", 13),
        "step_text": _arguments(
            spec, states, "those before the step, then those after it; zeros at first", 10
        ),
        "forward": _declaration(f"int32_t {name}_forward", forward),
        "step": _declaration(f"int32_t {name}_step", step),
        "stepping": "",
    }
    if not spec.bidirectional:
        texts["stepping"] = fill(
            "rnnjit_numba", "program_step.h", spec, dtype, name, **texts
        ).decode()
    return fill("rnnjit_numba", "program.h", spec, dtype, name, **texts)


def _states(spec: RNNSpec) -> str:
    """What the states are."""
    layer, D = spec.layer(0), spec.num_directions
    sizes = ", ".join(
        f"{state} [{spec.num_layers * D}, B, {size}]"
        for state, size in zip(spec.cell.states, layer.state_sizes, strict=True)
    )
    subject = "The state" if len(spec.cell.states) == 1 else "States"
    number = "the layer" if D == 1 else f"{D} * layer + direction; direction 1 reads from the end"
    projected = f": {layer.output_size} features, projected from {layer.hidden_size}"
    text = (
        f"{subject}: {sizes}. The first dimension is {number}. {spec.cell.states[0]} is what a "
        f"step put out{projected if spec.proj_size else ''}."
    )
    if spec.bidirectional:
        text += " There is no function for a step, since direction 1 needs the whole sequence."
    return textwrap.fill(text, _WIDTH, initial_indent=" * ", subsequent_indent=" * ")


def _arguments(spec: RNNSpec, names: Sequence[str], what: str, width: int) -> str:
    """A line of a comment for each state."""
    shapes = spec.state_shapes(1)
    lines = []
    for name, state, (count, _, features) in zip(names, spec.cell.states, shapes, strict=True):
        lines.append(f" *   {name:<{width}}[{count}, B, {features}]; {what.format(state)}")
    return "\n".join(lines)


def _declaration(start: str, parameters: Sequence[str]) -> str:
    """A declaration, in lines that are aligned with the first parameter."""
    indent = " " * (len(start) + 1)
    text = f"{start}({', '.join(parameters)})".replace(" *", "\0").replace("const ", "const\1")
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " *").replace("\1", " ")
