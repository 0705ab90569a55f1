"""Unusual values in the tensors of a call, and unusual ways in which they lie in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from rnnjit.testing.calls import Call

VALUES = {
    "subnormal": {torch.float32: 1e-40, torch.float64: 1e-310},
    "huge": 1e30,
    "edge": {torch.float32: 3e38, torch.float64: 1.7e308},
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "0.0": 0.0,
    "-0.0": -0.0,
}
TARGETS = ("x", "hx", "weights", "grad_y", "grad_h_n")
LAYOUTS = ("contiguous", "transposed", "offset", "columns", "rows", "inside", "expanded")


@dataclass(frozen=True)
class Splash:
    """Some elements of a tensor that are overwritten.

    Attributes:
        target: which tensor; "weights" is one of the parameters, by the seed.
        value: key of `VALUES`.
        share: of the elements; 0 is one element.
        seed: chooses them.
    """

    target: str
    value: str
    share: float
    seed: int


SPLASHES = st.builds(
    Splash,
    target=st.sampled_from(TARGETS),
    value=st.sampled_from(list(VALUES)),
    share=st.sampled_from([0, 0, 0.1, 0.5, 1]),
    seed=st.integers(0, 10**6),
)
LAYINGS = st.fixed_dictionaries({target: st.sampled_from(LAYOUTS) for target in TARGETS})


def splashed(call: Call, splashes: list[Splash]) -> Call:
    """A copy of a call with some elements overwritten."""
    call = replace(call, module=copy.deepcopy(call.module))
    for splash in splashes:
        generator = torch.Generator().manual_seed(splash.seed)
        tensor = _target(call, splash)
        if tensor is None or not tensor.numel():
            continue
        chosen = torch.rand(tensor.shape, generator=generator) < splash.share
        at = int(torch.randint(tensor.numel(), (), generator=generator))
        chosen.view(-1)[at] = True
        value = VALUES[splash.value]
        value = value[tensor.dtype] if isinstance(value, dict) else value
        sign = torch.rand(tensor.shape, generator=generator).sub(0.5).sign().to(tensor.dtype)
        signed = splash.value in ("subnormal", "huge", "edge")
        values = sign * value if signed else torch.full_like(tensor, value)
        with torch.no_grad():
            tensor.copy_(torch.where(chosen, values, tensor))
    return call


def _target(call: Call, splash: Splash) -> Tensor | None:
    if splash.target == "weights":
        weights = list(call.module.parameters())
        return weights[splash.seed % len(weights)]
    found = getattr(call, splash.target)
    return found[splash.seed % len(found)] if isinstance(found, tuple) else found


def laid(call: Call, layouts: dict[str, str]) -> Call:
    """A copy of a call whose tensors lie otherwise in memory; "expanded" ones have other values."""
    module = copy.deepcopy(call.module)
    weights = list(module.parameters())
    # One buffer for all weights, as in a flattened model; its start is off every alignment.
    flat = torch.cat([weights[0].new_zeros(1), *(w.detach().flatten() for w in weights)])
    start = 1
    for weight in weights:
        values = flat[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
        # Weights that share elements would not survive training.
        weight.data = (
            values if layouts["weights"] == "expanded" else lay(layouts["weights"], weight)
        )

    def change(name: str) -> Tensor | tuple[Tensor, ...] | None:
        found = getattr(call, name)
        if found is None:
            return None
        tensors = found if isinstance(found, tuple) else (found,)
        new = tuple(lay(layouts[name], t).requires_grad_(t.requires_grad) for t in tensors)
        return new if isinstance(found, tuple) else new[0]

    changed = {name: change(name) for name in TARGETS if name != "weights"}
    return replace(call, module=module, **changed)


def contiguous(call: Call) -> Call:
    """The same values, each tensor contiguous."""
    return laid(call, dict.fromkeys(TARGETS, "contiguous"))


def lay(layout: str, tensor: Tensor) -> Tensor:
    """The same values (the first slice's, if expanded) in another place in memory."""
    tensor = tensor.detach()
    if layout == "transposed":
        dims = list(range(tensor.dim()))[::-1]
        return tensor.permute(dims).contiguous().permute(dims)
    if layout == "offset":
        return torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].view(tensor.shape)
    if layout == "columns":
        return torch.stack([tensor, tensor.new_full(tensor.shape, 7)], -1)[..., 0]
    if layout == "rows":
        return torch.stack([tensor, tensor.new_full(tensor.shape, 7)], 1)[:, 0]
    if layout == "inside":
        return torch.nn.functional.pad(tensor, (2, 3), value=7)[..., 2:-3]
    if layout == "expanded":
        return tensor[:1].clone().expand(tensor.shape)
    return tensor.clone(memory_format=torch.contiguous_format)
