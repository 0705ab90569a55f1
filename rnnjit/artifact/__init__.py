"""Stacks compiled ahead of time: an artifact is a directory with code, weights and a manifest.

    manifest.json      layers, shapes, dtype, target, versions and checksums (see `manifest`)
    manifest.sha256    the checksum of the manifest, in the format of `sha256sum -c`
    weights.bin        all weights (see `weights`)
    NAME.h, NAME.o     a C header, and its object file or source

An artifact contains executable code: load only artifacts that you trust. The checksums detect
damage, but not tampering. There are no pickles in it.
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
