"""For backends that implement only the recurrence; the rest of a layer is GEMMs over all rows.

Such a backend passes its `Recurrence` to `layer_forward` and `layer_backward`.
"""

from rnnjit.recurrence.base import (
    Backward,
    Forward,
    Recurrence,
    dz_blocks,
    why_not_cell,
    why_not_projected,
)
from rnnjit.recurrence.layer import Saved, layer_backward, layer_forward
from rnnjit.recurrence.weight_grads import gradients_of

__all__ = [
    "Backward",
    "Forward",
    "Recurrence",
    "Saved",
    "dz_blocks",
    "gradients_of",
    "layer_backward",
    "layer_forward",
    "why_not_cell",
    "why_not_projected",
]
