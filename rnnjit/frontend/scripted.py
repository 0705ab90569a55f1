"""Modules of TorchScript inside a model. They run without Python, so none of them is compiled."""

from __future__ import annotations

import torch
from torch import nn

from rnnjit.frontend.reachable import reachable_modules
from rnnjit.runtime.torch_private import children_of


def scripted_modules(module: nn.Module) -> dict[str, torch.jit.ScriptModule]:
    """The distinct modules of TorchScript that a model holds, by path, but for those inside one."""
    found: dict[str, torch.jit.ScriptModule] = {}
    for path, child in reachable_modules(module):  # what is inside comes after it
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(child, torch.jit.ScriptModule) and not inside:
            found[path] = child
    return found


def scripted_recurrent(module: nn.Module) -> list[str]:
    """Where a model holds torch's recurrent modules as TorchScript, such as "GRU at 'rnn'"."""
    return [
        f"{name} at {'.'.join(filter(None, (path, inner)))!r}"
        for path, outer in scripted_modules(module).items()
        for inner, child in outer.named_modules()
        if (name := _recurrent_class(child))
    ]


def _recurrent_class(module: nn.Module) -> str:
    """The name of torch's recurrent class that was scripted or traced, or "" if it was another."""
    name: str = getattr(module, "original_name", "")
    layer, cell = name in ("RNN", "LSTM", "GRU"), name in ("RNNCell", "LSTMCell", "GRUCell")
    weight = "weight_hh_l0" if layer else "weight_hh"
    return name if (layer or cell) and hasattr(module, weight) else ""


def copy_scripted(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Copy a module of TorchScript and those inside; the copy shares all tensors.

    `copy.deepcopy` of such a module copies its tensors, whatever its memo holds. A copy has its own
    attributes, such as `training`. A list of tensors, as torch's recurrent layers have, is shared.
    """
    # Of the instance: one of a class that derives from ScriptModule passes it on to its module.
    copied: torch.jit.ScriptModule = module.__copy__()
    for name, child in children_of(module).items():
        setattr(copied, name, copy_scripted(child))
    return copied
