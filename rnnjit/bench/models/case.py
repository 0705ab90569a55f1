"""A model of the benchmark, and the file that describes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rnnjit
from rnnjit.bench.models.requirements import parse

#: One whole inference call: returns tensors, in any nesting of tuples, lists and dicts.
Inference = Callable[[], Any]
#: One whole training step, optimizer included: returns the loss.
Training = Callable[[], Tensor]


@dataclass(frozen=True)
class ModelCase:
    """A model, how it is called, and how it is compiled.

    `build` runs once for the eager model, once for the compiled and once for the one in float64,
    each time from the same seed. `inference` and `training` get a model and the dtype of its
    floating-point numbers. They make the inputs from a fixed seed of their own, draw random numbers
    in float32 whatever the dtype, and return the call that is timed: everything that a user would
    time, and nothing else.

    Attributes:
        name: as users know it, such as "silero-vad".
        recurrent: its recurrent part, such as "LSTMCell(128, 128)".
        call: how it is called, such as "B=1, chunks of 512 samples, states carried".
        source: where architecture and weights come from: the package's own, or rebuilt from a
            paper.
        requires: the distributions that must be installed besides rnnjit, with exact versions, such
            as "silero-vad==6.2.3". The file imports them inside its functions, so that it can be
            read without them.
        no_deps: names of those whose own dependencies are not installed, since what they pin does
            not fit: `requires` then lists what they need.
        remark: what stood in the way of compiling it, or what bounds it; a sentence for readers.
        build: makes the eager model.
        inference: makes the inference call; None for a model that is only trained.
        training: makes the training step; None for a model that is not trained.
        compile: compiles the model in place or returns another, as its user would write it.
        layers: classes of the modules that are its recurrent part, for the share of the time.
        inexact: why float64 cannot be the reference, "" if it can: the error that eager makes is
            then estimated from weights that differ in the last place.
        steps: training steps whose losses are compared.

    Raises:
        ValueError: there is neither a call nor a step, `requires` names no exact version, or
            `no_deps` what `requires` does not.
    """

    name: str
    recurrent: str
    call: str
    source: str
    build: Callable[[], nn.Module]
    inference: Callable[[Any, torch.dtype], Inference] | None = None
    training: Callable[[Any, torch.dtype], Training] | None = None
    requires: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    remark: str = ""
    compile: Callable[[Any], Any] = rnnjit.compile
    layers: tuple[type, ...] = (nn.RNNBase, nn.RNNCellBase, rnnjit.Recurrent)
    inexact: str = ""
    steps: int = 5

    def __post_init__(self) -> None:
        if self.inference is None and self.training is None:
            raise ValueError(f"{self.name} needs an inference call or a training step, got neither")
        names = [parse(requirement)[0] for requirement in self.requires]
        unknown = [name for name in self.no_deps if name not in names]
        if unknown:
            raise ValueError(f"no_deps must name what requires names, got {unknown[0]!r}")


def load_case(path: Path) -> ModelCase:
    """Run a file that describes a model, and return its `CASE`.

    Raises:
        OSError: the file cannot be read.
        TypeError: the file has no `CASE` that is a `ModelCase`.
        Exception: the error of the file itself.
    """
    spec = importlib.util.spec_from_file_location(f"rnnjit_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise OSError(f"{path} is not a Python file: a model's file ends with .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case = getattr(module, "CASE", None)
    if not isinstance(case, ModelCase):
        raise TypeError(f"{path} must set CASE to a ModelCase, got {type(case).__name__}")
    return case
