"""The kinds of torch's layers for tests of backends, and which backend takes which."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from accepted import accepts
from torch import Tensor, nn

import rnnjit
from rnnjit.frontend.capture import torch_module
from rnnjit.ir import GRU, LSTM, RNN_RELU
from rnnjit.testing import Case

#: Fields of `Case`, by name; H must be above P.
KINDS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"cell": RNN_RELU},
    "LSTM": {"cell": LSTM},
    "projected": {"cell": LSTM, "proj_size": 5},
    "GRU": {"cell": GRU},
}
#: Those of nn.RNN, which every backend takes.
ELMAN = ("tanh", "relu")


class Which(NamedTuple):
    """A backend and a kind of layer.

    Attributes:
        backend: its name.
        kind: a key of `KINDS`.
    """

    backend: str
    kind: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.kind}"


def taken(backends: list[str], kinds: tuple[str, ...] = tuple(KINDS)) -> list[Which]:
    """Each of some backends with those of some kinds that it takes."""
    return [
        Which(name, kind)
        for name in backends
        for kind in kinds
        if accepts(rnnjit.backends()[name], Case(kind, **KINDS[kind]))
    ]


def gated(backends: list[str]) -> list[Which]:
    """Each of some backends with those kinds that it takes which have several gates."""
    return taken(backends, tuple(kind for kind in KINDS if kind not in ELMAN))


def layer(kind: str, I: int, H: int, dtype: torch.dtype = torch.float32, **options) -> nn.RNNBase:
    """A layer of torch's with new weights; options are fields of `Case`."""
    case = Case("layer", I, H, dtype=dtype, **KINDS[kind], **options)
    return torch_module(case.spec, dtype)


def first_states(rnn: nn.RNNBase, B: int) -> tuple[Tensor, ...]:
    """Drawn initial states, each `[L*D, B, P or H]`."""
    count, dtype = rnn.num_layers * (1 + rnn.bidirectional), rnn.weight_hh_l0.dtype
    sizes = [rnn.proj_size or rnn.hidden_size]
    sizes += [rnn.hidden_size] * (rnn.mode == "LSTM")
    return tuple(torch.randn(count, B, size).to(dtype) for size in sizes)


def called(module: nn.Module, x: Any, hx: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
    """The output and the last states, as a tuple, of a layer called with these states."""
    with warnings.catch_warnings():
        # Torch says so of its own, once.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with")
        y, last = module(x, hx if len(hx) > 1 else hx[0])
    return y, last if isinstance(last, tuple) else (last,)
