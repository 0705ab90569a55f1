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
    states = f"[{spec.num_layers * spec.num_directions}, B, {spec.hidden_size}]"
    y = f"[T, B, {spec.num_directions * spec.hidden_size}]"
    return {"x": f"[T, B, {spec.input_size}]", "h0": states, "y": y, "h_n": states}


def fill(
    package: str, file: str, spec: RNNSpec, dtype: torch.dtype, name: str, **others: object
) -> bytes:
    """Fill the template `file` of a package with the values that all C files of artifacts share.

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
    values: dict[str, object] = {
        "what": _describe(spec, dtype),
        "name": name,
        "guard": f"{name.upper()}_H",
        "real": _REAL[dtype],
        "input_size": spec.input_size,
        "hidden_size": spec.hidden_size,
        "num_layers": spec.num_layers,
        "num_directions": spec.num_directions,
        "width": spec.num_directions * spec.hidden_size,
        "weights_bytes": layout(spec, dtype.itemsize).size,
    }
    return template.substitute({**values, **shapes(spec), **others}).encode()


def _describe(spec: RNNSpec, dtype: torch.dtype) -> str:
    kind = "bidirectional " if spec.bidirectional else ""
    layers = "1 layer" if spec.num_layers == 1 else f"{spec.num_layers} layers"
    return (
        f"A {kind}recurrent network, {layers}: {spec.cell.name}, {spec.input_size} to "
        f"{spec.hidden_size} features, {str(dtype).removeprefix('torch.')}."
    )
