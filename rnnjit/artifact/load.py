"""`rnnjit.load_artifact`: runs an artifact for this machine from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.artifact import manifest as files
from rnnjit.artifact.manifest import ArtifactError, Manifest
from rnnjit.artifact.weights import layout
from rnnjit.backend import Program, Runner
from rnnjit.dispatch.registry import backends
from rnnjit.frontend.arguments import Result, prepare, restore
from rnnjit.runtime.torch_private import never_traced


class Artifact:
    """A stack that was compiled ahead of time; made by `load_artifact`.

    It has the arguments and results of the exported layer in evaluation mode, on the CPU. Several
    threads may call it at once. It has no backward pass.

    Attributes:
        manifest: the description of the artifact.
    """

    def __init__(self, manifest: Manifest, weights: bytes, run: Runner) -> None:
        self.manifest = manifest
        self._spec = manifest.rnn_spec
        self._block = torch.frombuffer(bytearray(weights), dtype=torch.uint8)
        # Has the dtype and device that arguments must have; it stands for a weight in `prepare`.
        self._like = torch.empty(0, dtype=getattr(torch, manifest.dtype), device="cpu")
        self._run = run

    @never_traced
    def __call__(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.RNN's own name
        hx: Any = None,
    ) -> Result:
        """Run the stack; arguments, results and exceptions are those of the layer's `forward`.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: the initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched, of nn.LSTM the tuple
                (h `[L*D, B, P]`, c `[L*D, B, H]`); zeros if None. P is H, or nn.LSTM's proj_size.

        Returns:
            The outputs of the last layer at every step (`[T, B, D*P]`, or in the input's form) and
            the last state of every layer and direction, in the form of `hx`.

        Raises:
            AttributeError: an argument is not a tensor.
            ValueError: wrong rank, or a dtype other than the artifact's.
            RuntimeError: any other wrong shape, dtype or device, or an argument requires a
                gradient.
        """
        prepared = prepare(self._spec, self._like, input, hx)
        x, hx = prepared.x, prepared.hx
        given = (x, *(hx or ()))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            raise RuntimeError(
                "an artifact has no backward pass, but input or hx requires a gradient: "
                "call it in torch.no_grad()"
            )
        states = hx and tuple(state.detach().contiguous() for state in hx)
        y, h_n = self._run(prepared.rows, x.detach(), states, self._block)
        return restore(self._spec, prepared, y, h_n)

    def __repr__(self) -> str:
        return f"<Artifact {self._spec}, {self.manifest.dtype}, for {self.manifest.target}>"


def load_artifact(path: str | Path) -> Artifact:
    """Load an artifact that `export_artifact` made for this machine.

    All files are checked against the checksums in the manifest before any code is loaded. Loading
    needs neither numba nor a compiler.

    Args:
        path: the directory.

    Raises:
        TypeError: `path` is not a path.
        ArtifactError: it is not an artifact, is damaged, is for another machine, or needs a backend
            that is not installed.
    """
    place = files.as_path(path)
    manifest = files.read(place)
    spec, dtype = manifest.rnn_spec, getattr(torch, manifest.dtype)
    content = {name: files.read_file(place, manifest, name) for name in manifest.files}
    expected = layout(spec, dtype.itemsize)
    found = tuple((w.name, w.shape, w.offset) for w in manifest.weights)
    if len(content.get(files.WEIGHTS, b"")) != expected.size or found != expected.places:
        raise ArtifactError(f"{place / files.WEIGHTS} does not hold the weights of {spec}")
    backend = backends().get(manifest.backend)
    if backend is None:
        raise ArtifactError(
            f"{place} was built by backend {manifest.backend!r}, which is not installed"
        )
    weights = content.pop(files.WEIGHTS)
    program = Program(content, manifest.machine, manifest.versions)
    return Artifact(manifest, weights, backend.load(program, spec, dtype, manifest.name))
