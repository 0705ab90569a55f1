"""C files of artifacts, made from templates that backends ship."""

from __future__ import annotations

from importlib.resources import files
from string import Template

import torch

from rnnjit.artifact.weights import layout
from rnnjit.spec import RNNSpec

_REAL = {torch.float32: "float", torch.float64: "double"}


def shapes(spec: RNNSpec) -> dict[str, str]:
    """The shapes of a call's tensors, T and B being free, as C has them: time first.

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
    """The template `file` of a package, with what every artifact's C files speak of put in.

    Args:
        package: import package that ships the template, a `string.Template`.
        file: its name there.
        spec: the stack.
        dtype: of all tensors.
        name: with which C symbols and file names begin.
        **others: further values of the template.

    Raises:
        KeyError: the template asks for a value that is not there.
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
