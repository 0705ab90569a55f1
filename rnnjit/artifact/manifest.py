"""The manifest of an artifact: its description, and the checksums of its files."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from rnnjit.ir import CellSpec
from rnnjit.spec import RNNSpec

FORMAT = 3
MANIFEST, CHECKSUM, WEIGHTS = "manifest.json", "manifest.sha256", "weights.bin"


_Positive = Annotated[int, msgspec.Meta(ge=1)]
#: A C identifier, the prefix of file names and symbols.
_Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
#: The name of a file in the artifact's directory; no path separators.
_FileName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.]*$")]


class ArtifactError(ValueError):
    """A directory is not an artifact, is damaged, or is for another machine; see the message."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The size and checksum of a file.

    Attributes:
        bytes: its size.
        sha256: its checksum, in hexadecimal.
    """

    bytes: int
    sha256: _Hash


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The position of a weight in the file of weights.

    Attributes:
        name: its name in nn.RNN.
        shape: its shape; the elements are in row-major order.
        offset: bytes before its first element.
    """

    name: str
    shape: tuple[int, ...]
    offset: int


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of `rnnjit.RNNSpec`, with the limits that torch's layers have.

    Attributes:
        cell: the cell, as `CellSpec.text`.
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
        """Convert an `RNNSpec`."""
        own = {name: getattr(spec, name) for name in cls.__struct_fields__}
        return cls(**{**own, "cell": spec.cell.text})


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The description of an artifact.

    Attributes:
        format: version of the format, `FORMAT`.
        name: prefix of its symbols and files.
        backend: the backend that built it.
        target: the `target` that it was exported for.
        machine: its requirements, as `Program.machine`.
        spec: the stack, with dropout 0, since artifacts run in evaluation mode.
        dtype: dtype of all tensors.
        shapes: symbolic shapes of the arguments and results of a call, such as "[T, B, 16]".
        weights: the position of each weight, in nn.RNN's flat order.
        versions: versions of rnnjit, PyTorch and the compilers.
        files: size and checksum of all other files, by name.
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
        """The stack as an `RNNSpec`."""
        fields = msgspec.structs.asdict(self.spec)
        return RNNSpec(**{**fields, "cell": CellSpec.parse(self.spec.cell)})


def as_path(path: object) -> Path:
    """Convert the argument `path` of a public function.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: it contains a null character.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be a str or a Path, got {type(path).__name__}")
    if "\0" in str(path):
        raise ValueError(f"path must hold no null character, got {str(path)!r}")
    return Path(path)


def encode(manifest: Manifest) -> bytes:
    """Encode a manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def checksum_line(content: bytes) -> bytes:
    """The content of the checksum file for a manifest with this content."""
    return f"{digest(content)}  {MANIFEST}\n".encode()


def digest(content: bytes) -> str:
    """The SHA-256 digest of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read(directory: Path) -> Manifest:
    """Read the manifest of an artifact and check it against its checksum.

    Raises:
        ArtifactError: there is none, it is damaged, or it has another format.
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
        CellSpec.parse(manifest.spec.cell)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{directory / MANIFEST} makes no sense: {error}") from None
    return manifest


def read_file(directory: Path, manifest: Manifest, name: str) -> bytes:
    """Read a file of an artifact and check it against its checksum.

    Raises:
        ArtifactError: it is missing or damaged.
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
    """The part of a manifest that all formats have in common."""

    format: int


def _content(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{directory} is no artifact, or not all of one: {name} cannot be read "
            f"({error.strerror or error})"
        ) from None
