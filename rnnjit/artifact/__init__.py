"""Stacks compiled ahead of time: a directory that holds code, weights and a manifest.

    manifest.json      what it is: layers, shapes, dtype, target, versions, checksums (`manifest`)
    manifest.sha256    the manifest's own checksum, as `sha256sum -c` reads it
    weights.bin        all weights (`weights`)
    NAME.h, NAME.o     a C header, and the object file or source that it belongs to

An artifact's code is executable content: load only what you trust. Its checksums tell damage, not
malice. There are no pickles in it.
"""

from rnnjit.artifact.export import export_artifact, targets
from rnnjit.artifact.load import Artifact, load_artifact
from rnnjit.artifact.manifest import ArtifactError, Manifest

__all__ = [
    "Artifact",
    "ArtifactError",
    "Manifest",
    "export_artifact",
    "load_artifact",
    "targets",
]
