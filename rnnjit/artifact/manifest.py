"""The manifest of an artifact: what it is, and what its files must be."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from rnnjit.cells import Cell
from rnnjit.spec import RNNSpec

FORMAT = 2
MANIFEST, CHECKSUM, WEIGHTS = "manifest.json", "manifest.sha256", "weights.bin"


_Positive = Annotated[int, msgspec.Meta(ge=1)]
#: A C identifier, which names files and symbols.
_Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
#: A file in the artifact's own directory.
_FileName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.]*$")]


class ArtifactError(ValueError):
    """A directory is no artifact, is damaged, or is not for this machine, as the message says."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be.

    Attributes:
        bytes: its size.
        sha256: its checksum, in hexadecimal.
    """

    bytes: int
    sha256: _Hash


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a weight lies in the file of weights.

    Attributes:
        name: nn.RNN's own.
        shape: row-major.
        offset: bytes before its first element.
    """

    name: str
    shape: tuple[int, ...]
    offset: int


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of `rnnjit.RNNSpec`, with the limits that torch's layers have.

    Attributes:
        cell: what is computed at every step, as `Cell.text`.
    """

    input_size: _Positive
    hidden_size: _Positive
    num_layers: _Positive
    cell: str
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: Annotated[int, msgspec.Meta(ge=0)]

    @classmethod
    def of(cls, spec: RNNSpec) -> Spec:
        """The fields of a stack."""
        own = {name: getattr(spec, name) for name in cls.__struct_fields__}
        return cls(**{**own, "cell": spec.cell.text})


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an artifact is.

    Attributes:
        format: of the artifact, `FORMAT`.
        name: with which its symbols and files begin.
        backend: which backend built it.
        target: what it was built for, as it was asked for.
        machine: what it needs, in the backend's words.
        spec: the stack; dropout is none, since artifacts are for evaluation.
        dtype: of all tensors.
        shapes: of the arguments and results of a call, in letters.
        weights: where each weight is, in nn.RNN's flat order.
        versions: of rnnjit, PyTorch and what else took part.
        files: all others, by name.
    """

    format: int
    name: _Name
    backend: str
    target: str
    machine: dict[str, str]
    spec: Spec
    dtype: Literal["float32", "float64"]
    shapes: dict[str, str]
    weights: tuple[Weight, ...]
    versions: dict[str, str]
    files: dict[_FileName, File]

    @property
    def rnn_spec(self) -> RNNSpec:
        """The stack, in the core's own terms."""
        fields = msgspec.structs.asdict(self.spec)
        return RNNSpec(**{**fields, "cell": Cell.parse(self.spec.cell)})


def as_path(path: object) -> Path:
    """The argument `path` of a public function.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: no path may have it.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be a str or a Path, got {type(path).__name__}")
    if "\0" in str(path):
        raise ValueError(f"path must hold no null character, got {str(path)!r}")
    return Path(path)


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON that a person can read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def checksum_line(content: bytes) -> bytes:
    """What the checksum file of a manifest with this content holds."""
    return f"{digest(content)}  {MANIFEST}\n".encode()


def digest(content: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read(directory: Path) -> Manifest:
    """The manifest of an artifact, checked against its checksum.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another format.
    """
    content = _content(directory, MANIFEST)
    if _content(directory, CHECKSUM) != checksum_line(content):
        raise ArtifactError(f"{directory / MANIFEST} is damaged: its checksum does not fit")
    try:
        found = msgspec.json.decode(content, type=_Format).format
        if found != FORMAT:
            raise ArtifactError(
                f"{directory} is an artifact of format {found}, expected {FORMAT}: export it anew"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{directory / MANIFEST} makes no sense: {error}") from None
    try:
        Cell.parse(manifest.spec.cell)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{directory / MANIFEST} makes no sense: {error}") from None
    return manifest


def read_file(directory: Path, manifest: Manifest, name: str) -> bytes:
    """The content of one of an artifact's files, checked.

    Raises:
        ArtifactError: it is not there, or is damaged.
    """
    expected = manifest.files.get(name)
    if expected is None:
        raise ArtifactError(f"{directory / MANIFEST} names no file {name}: export it anew")
    content = _content(directory, name)
    if len(content) != expected.bytes:
        raise ArtifactError(
            f"{directory / name} is damaged: {len(content)} bytes, expected {expected.bytes}"
        )
    if digest(content) != expected.sha256:
        raise ArtifactError(f"{directory / name} is damaged: its checksum does not fit")
    return content


class _Format(msgspec.Struct):
    """As much of a manifest as every format has."""

    format: int


def _content(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{directory} is no artifact, or not all of one: {name} cannot be read "
            f"({error.strerror or error})"
        ) from None
