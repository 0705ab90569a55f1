"""rnnjit: compile the `nn.RNN` you already have, and get back a drop-in that runs faster.

In use:

    import rnnjit
    fast = rnnjit.compile(model)    # an nn.RNN, or any module that contains some
    y, h = fast(x)                  # same arguments, same results, same gradients
"""

from rnnjit.artifact import Artifact, ArtifactError, export_artifact, load_artifact, targets
from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs
from rnnjit.compare import ComparedCalls, compare
from rnnjit.errors import BackendError, RNNJitWarning, UnsupportedError
from rnnjit.explain import Explanation, explain
from rnnjit.flow import GradientFlow, gradient_flow
from rnnjit.module import CompiledRNN
from rnnjit.registry import backends
from rnnjit.rnncell import CompiledRNNCell
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows
from rnnjit.stream import Stream
from rnnjit.swap import compile  # noqa: A004 - the name users know from torch.compile
from rnnjit.tune import TunedCall, Tuning, tune

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "Backend",
    "BackendError",
    "ComparedCalls",
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
    "Rows",
    "Stream",
    "TunedCall",
    "Tuning",
    "UnsupportedError",
    "__version__",
    "backends",
    "compare",
    "compile",
    "explain",
    "export_artifact",
    "gradient_flow",
    "load_artifact",
    "targets",
    "tune",
]
