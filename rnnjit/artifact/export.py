"""`rnnjit.export_artifact`: compiles a stack for a target machine and writes it to a directory."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from rnnjit.artifact import manifest as files
from rnnjit.artifact.manifest import File, Manifest, Spec, Weight
from rnnjit.artifact.template import shapes
from rnnjit.artifact.weights import layout, pack
from rnnjit.backend import Backend, Program
from rnnjit.dispatch.choice import why_not_cell
from rnnjit.dispatch.registry import backends
from rnnjit.frontend.arguments import check_weights
from rnnjit.frontend.capture import capture, weight_names, weights_of
from rnnjit.frontend.plain_layer import check_plain
from rnnjit.spec import RNNSpec

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def targets() -> dict[str, str]:
    """The targets of `export_artifact`: for each name, the backend that builds for it.

    Example:
        >>> targets()["aarch64"]
        'numba'
    """
    return {
        target: backend.name
        for backend in reversed(list(backends().values()))
        for target in backend.targets()
    }


def export_artifact(
    module: nn.Module,
    path: str | Path,
    *,
    target: str = "native",
    name: str = "rnn",
    overwrite: bool = False,
) -> Path:
    """Write a stack and its weights, compiled ahead of time, into a directory.

    The artifact computes the forward pass in evaluation mode, without Python and without PyTorch.
    `NAME.h` documents how to call it from C: for whole sequences, dense or packed, and, if the
    stack has one direction, a step at a time. `rnnjit.load_artifact` runs an artifact for this
    machine from Python.

    Args:
        module: an nn.RNN, nn.LSTM or nn.GRU, or a compiled one, float32 or float64, that computes
            what torch's own does. Hooks on it take no part.
        path: the directory. It must be empty or not exist; with `overwrite` it may hold an
            artifact.
        target: one of `rnnjit.targets()`; "native" is this machine with all its vector features.
        name: prefix of C symbols and file names, so that a program can link several artifacts.
        overwrite: whether to replace an existing artifact.

    Returns:
        The directory.

    Raises:
        TypeError: `module` is none of these, the backend cannot build its cell for `target`, or
            `path` is not a path.
        ValueError: `target` is unknown, `name` is not a C identifier, `path` contains a null
            character, `module` has its own `forward`, assigned `_flat_weights` or an override of
            what torch's `forward` uses, or its weights have another dtype or are on the meta
            device.
        RuntimeError: a weight of `module` does not fit its configuration.
        FileExistsError: `path` is a file, or a directory that must not be replaced.
    """
    spec, weights = _stack(module)
    dtype = weights[0].dtype
    if dtype not in _DTYPES:
        raise ValueError(f"module must be float32 or float64, got {dtype}: convert it first")
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"name must be a C identifier, such as 'rnn', got {name!r}")
    backend = _builder(target)
    if lacks := why_not_cell(backend, spec.cell) or backend.why_not_build(spec.cell):
        raise TypeError(
            f"module must be of a cell that backend {backend.name!r} builds for {target!r}, got "
            f"{type(module).__name__}: {'; '.join(lacks)}"
        )
    place = files.as_path(path)
    _check_place(place, overwrite)
    program = backend.build(spec, dtype, target, name)
    content = {**program.files, files.WEIGHTS: pack(spec, weights)}
    described = _describe(spec, dtype, backend, target, name, program, content)
    encoded = files.encode(described)
    content |= {files.MANIFEST: encoded, files.CHECKSUM: files.checksum_line(encoded)}
    _write(place, content)
    return place


def _stack(module: nn.Module) -> tuple[RNNSpec, tuple[torch.Tensor, ...]]:
    check_plain(module, "an artifact")
    spec, weights = replace(capture(module), dropout=0.0), weights_of(module)
    if spec.quantized:
        raise ValueError(
            "module must have float matrices, got int8 ones, for which no artifact can be built: "
            "export the module that was quantized"
        )
    check_weights(spec, weight_names(module), weights)
    if weights[0].is_meta:
        raise ValueError("module must have values to export, got weights on meta: load them first")
    return spec, weights


def _builder(target: str) -> Backend:
    """The backend that builds for a target."""
    known = targets()
    if not isinstance(target, str) or target not in known:
        raise ValueError(f"target must be one of {', '.join(sorted(known))}, got {target!r}")
    return backends()[known[target]]


def _describe(
    spec: RNNSpec,
    dtype: torch.dtype,
    backend: Backend,
    target: str,
    name: str,
    program: Program,
    content: Mapping[str, bytes],
) -> Manifest:
    places = layout(spec, dtype.itemsize).places
    return Manifest(
        format=files.FORMAT,
        name=name,
        backend=backend.name,
        target=target,
        machine=dict(program.machine),
        spec=Spec.of(spec),
        dtype=_DTYPES[dtype],  # type: ignore[arg-type]  # one of the two that are checked for
        shapes=shapes(spec),
        weights=tuple(Weight(*place) for place in places),
        versions={"rnnjit": version("rnnjit"), "torch": str(torch.__version__), **program.versions},
        files={key: File(len(value), files.digest(value)) for key, value in content.items()},
    )


def _check_place(place: Path, overwrite: bool) -> None:
    if not place.exists():
        above = next(parent for parent in place.absolute().parents if parent.exists())
        if not above.is_dir():
            raise FileExistsError(f"path must lie in a directory, {above} is a file")
        return
    if not place.is_dir():
        raise FileExistsError(f"path must be a directory or not there yet, {place} is a file")
    if not any(place.iterdir()):
        return
    if not (place / files.MANIFEST).exists():
        raise FileExistsError(f"path must be empty or hold an artifact, {place} holds other files")
    if not overwrite:
        raise FileExistsError(f"{place} holds an artifact: give overwrite=True to replace it")


def _write(place: Path, content: Mapping[str, bytes]) -> None:
    """Write all files to a temporary directory and rename it, so that readers never see a part."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as made:
        fresh = Path(made) / "fresh"
        fresh.mkdir()
        for name, data in content.items():
            (fresh / name).write_bytes(data)
        if place.exists():
            shutil.rmtree(place)
        fresh.replace(place)
