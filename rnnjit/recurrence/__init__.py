"""For backends that bring the recurrence alone: everything else of a layer is a GEMM over all rows.

A backend's `forward` and `backward` hand a `Recurrence` to `layer_forward` and `layer_backward`.
"""

from rnnjit.recurrence.base import Backward, Forward, Recurrence, why_not_cell
from rnnjit.recurrence.layer import layer_backward, layer_forward

__all__ = ["Backward", "Forward", "Recurrence", "layer_backward", "layer_forward", "why_not_cell"]
