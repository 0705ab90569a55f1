"""Fills the templates, shipped by backends, for the C files of artifacts."""

from __future__ import annotations

from importlib.resources import files
from string import Template

import torch

from rnnjit.artifact.weights import layout
from rnnjit.spec import RNNSpec

_REAL = {torch.float32: "float", torch.float64: "double"}


def shapes(spec: RNNSpec) -> dict[str, str]:
    """The symbolic shapes of a call's tensors in C, time first; T and B are variable.

    Example:
        >>> shapes(RNNSpec(8, 16, num_layers=2))["h0"]
        '[2, B, 16]'
    """
    found = {"x": f"[T, B, {spec.input_size}]", "y": f"[T, B, {_width(spec)}]"}
    sizes = zip(spec.cell.states, spec.layer(0).state_sizes, strict=True)
    for state, size in sizes:
        shape = f"[{spec.num_layers * spec.num_directions}, B, {size}]"
        found |= {f"{state}0": shape, f"{state}_n": shape}
    return found


def fill(
    package: str, file: str, spec: RNNSpec, dtype: torch.dtype, name: str, **others: object
) -> bytes:
    """Fill the template `file` of a package with the values that all C files of artifacts share.

    `$h0` and `$h_n` are the shapes of the first state, whatever its name.

    Args:
        package: import package that ships the template, a `string.Template`.
        file: file name of the template in the package.
        spec: the stack.
        dtype: dtype of all tensors.
        name: prefix of C symbols and file names.
        **others: further values for the template.

    Returns:
        The filled template, as UTF-8.

    Raises:
        KeyError: the template has a placeholder without a value.
    """
    template = Template(files(package).joinpath(file).read_text(encoding="utf-8"))
    found, first = shapes(spec), spec.cell.states[0]
    values: dict[str, object] = {
        "what": _describe(spec, dtype),
        "name": name,
        "guard": f"{name.upper()}_H",
        "real": _REAL[dtype],
        "input_size": spec.input_size,
        "hidden_size": spec.hidden_size,
        "num_layers": spec.num_layers,
        "num_directions": spec.num_directions,
        "width": _width(spec),
        "weights_bytes": layout(spec, dtype.itemsize).size,
    }
    values |= {"h0": found[f"{first}0"], "h_n": found[f"{first}_n"], **found}
    return template.substitute({**values, **others}).encode()


def _width(spec: RNNSpec) -> int:
    """Features of a row of y."""
    return spec.num_directions * spec.layer(0).output_size


def _describe(spec: RNNSpec, dtype: torch.dtype) -> str:
    kind = "bidirectional " if spec.bidirectional else ""
    layers = "1 layer" if spec.num_layers == 1 else f"{spec.num_layers} layers"
    projected = f", projected to {spec.proj_size}" if spec.proj_size else ""
    return (
        f"A {kind}recurrent network, {layers}: {spec.cell.name}, {spec.input_size} to "
        f"{spec.hidden_size} features{projected}, {str(dtype).removeprefix('torch.')}."
    )
