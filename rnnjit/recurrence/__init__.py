"""For backends that implement only the recurrence; the rest of a layer is GEMMs over all rows.

Such a backend passes its `Recurrence` to `layer_forward` and `layer_backward`.
"""

from rnnjit.recurrence.base import Backward, Forward, Recurrence, why_not_cell
from rnnjit.recurrence.layer import layer_backward, layer_forward

__all__ = [
    "Backward",
    "Forward",
    "Recurrence",
    "layer_backward",
    "layer_forward",
    "why_not_cell",
]
