"""Tells the layers whose weights and configuration alone say what they compute.

A stream and an artifact run without the `forward` of the module that they are made from.
"""

from __future__ import annotations

from torch import nn

# These say which torch classes they replace.
import rnnjit.frontend.compiled_cell
import rnnjit.frontend.compiled_layer  # noqa: F401 - as above
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_class import has_known_forward, overridden, replaced
from rnnjit.frontend.quantized_modules import float_class
from rnnjit.frontend.recurrent import Recurrent


def check_plain(module: nn.Module, what: str) -> None:
    """Check that a layer computes what torch's own computes with these weights.

    Args:
        module: the argument of the caller.
        what: what is made from it and would not use what it overrides, such as "a stream".

    Raises:
        TypeError: it is no nn.RNN, nn.LSTM or nn.GRU, compiled or not.
        ValueError: it overrides what torch's `forward` uses, or `forward` itself.
    """
    name = type(module).__name__
    if isinstance(module, Recurrent):
        raise TypeError(
            f"module must be a torch.nn.RNN, nn.LSTM or nn.GRU, got a Recurrent: {what} runs no "
            "cells of your own. Call the module itself, frame by frame with one step and the "
            "states before it: y, states = module(x[None], states)"
        )
    if not isinstance(module, nn.RNNBase) or not isinstance(module, (*replaced(), CompiledBase)):
        advice = "compile it first" if float_class(module) else "give the layer inside it"
        kind = f"torch's dynamically quantized {name}" if float_class(module) else name
        raise TypeError(f"module must be a torch.nn.RNN, nn.LSTM or nn.GRU, got {kind}: {advice}")
    if why := _why_not_plain(module):
        raise ValueError(
            f"module must compute what torch's own layer does, got {name}, which {why}: "
            f"{what} would not use that. Give a layer without it, or call the module itself"
        )


def _why_not_plain(module: nn.Module) -> str:
    """What a layer overrides of that which its result depends on, or "" if nothing."""
    if not has_known_forward(type(module)):
        return "overrides forward"
    if why := overridden(module):
        return why
    assigned = isinstance(module, CompiledBase) and module._weights_assigned
    return "overrides what torch's forward uses" if assigned else ""
