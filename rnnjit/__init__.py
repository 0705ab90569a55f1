"""rnnjit: compile the recurrent layers you already have into drop-ins that run faster.

In use:

    import rnnjit
    fast = rnnjit.compile(model)    # nn.RNN, nn.LSTM, nn.GRU, a Cell, or what contains some
    y, h = fast(x)                  # same arguments, same results, same gradients

Each public name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnnjit.artifact import Artifact, ArtifactError, export_artifact, load_artifact, targets
    from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs
    from rnnjit.cells import Cell
    from rnnjit.dispatch.registry import backends
    from rnnjit.errors import BackendError, CellError, RNNJitWarning, UnsupportedError
    from rnnjit.frontend.adapt import Adaptation, adapt
    from rnnjit.frontend.compile import compile  # noqa: A004 - the name users know from torch.compile
    from rnnjit.frontend.compiled_cell import CompiledGRUCell, CompiledLSTMCell, CompiledRNNCell
    from rnnjit.frontend.compiled_layer import CompiledGRU, CompiledLSTM, CompiledRNN
    from rnnjit.frontend.quantize import quantize
    from rnnjit.frontend.recurrent import Recurrent
    from rnnjit.frontend.stream import Stream
    from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows
    from rnnjit.tools.autotune import TunedCall, Tuning, tune
    from rnnjit.tools.compare import ComparedCalls, compare
    from rnnjit.tools.explain import Explanation, explain
    from rnnjit.tools.gradient_flow import GradientFlow, gradient_flow

__version__ = "0.1.0"

#: The public names by the module that holds them.
_HOLDERS = {
    "rnnjit.artifact": (
        *("Artifact", "ArtifactError", "export_artifact", "load_artifact", "targets"),
    ),
    "rnnjit.backend": ("Backend", "LayerGrads", "LayerOutput", "Needs"),
    "rnnjit.cells": ("Cell",),
    "rnnjit.dispatch.registry": ("backends",),
    "rnnjit.errors": ("BackendError", "CellError", "RNNJitWarning", "UnsupportedError"),
    "rnnjit.frontend.adapt": ("Adaptation", "adapt"),
    "rnnjit.frontend.compile": ("compile",),
    "rnnjit.frontend.compiled_cell": ("CompiledGRUCell", "CompiledLSTMCell", "CompiledRNNCell"),
    "rnnjit.frontend.compiled_layer": ("CompiledGRU", "CompiledLSTM", "CompiledRNN"),
    "rnnjit.frontend.quantize": ("quantize",),
    "rnnjit.frontend.recurrent": ("Recurrent",),
    "rnnjit.frontend.stream": ("Stream",),
    "rnnjit.spec": ("LayerSpec", "Problem", "RNNSpec", "Rows"),
    "rnnjit.tools.autotune": ("TunedCall", "Tuning", "tune"),
    "rnnjit.tools.compare": ("ComparedCalls", "compare"),
    "rnnjit.tools.explain": ("Explanation", "explain"),
    "rnnjit.tools.gradient_flow": ("GradientFlow", "gradient_flow"),
}
_HOLDER_OF = {name: holder for holder, names in _HOLDERS.items() for name in names}
_SUBMODULES = ("cells", "ir", "recurrence", "testing")

__all__ = [
    "Adaptation",
    "Artifact",
    "ArtifactError",
    "Backend",
    "BackendError",
    "Cell",
    "CellError",
    "ComparedCalls",
    "CompiledGRU",
    "CompiledGRUCell",
    "CompiledLSTM",
    "CompiledLSTMCell",
    "CompiledRNN",
    "CompiledRNNCell",
    "Explanation",
    "GradientFlow",
    "LayerGrads",
    "LayerOutput",
    "LayerSpec",
    "Needs",
    "Problem",
    "RNNJitWarning",
    "RNNSpec",
    "Recurrent",
    "Rows",
    "Stream",
    "TunedCall",
    "Tuning",
    "UnsupportedError",
    "__version__",
    "adapt",
    "backends",
    "compare",
    "compile",
    "explain",
    "export_artifact",
    "gradient_flow",
    "load_artifact",
    "quantize",
    "targets",
    "tune",
]


def __getattr__(name: str) -> object:
    if name in _HOLDER_OF:
        found = getattr(import_module(_HOLDER_OF[name]), name)
        globals()[name] = found
        return found
    if name in _SUBMODULES:
        return import_module(f"rnnjit.{name}")
    raise AttributeError(f"module 'rnnjit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
