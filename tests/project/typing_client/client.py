"""A project that uses rnnjit, as type checkers read it: every line must be what it says."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import assert_type

import rnnjit


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3)


rnn = nn.RNN(2, 3)
x = torch.zeros(4, 1, 2)
assert_type(rnnjit.compile(rnn), rnnjit.CompiledRNN)
assert_type(rnnjit.compile(nn.RNNCell(2, 3)), rnnjit.CompiledRNNCell)
assert_type(rnnjit.compile(Model(), backend="numba", inplace=True), Model)
fast = rnnjit.compile(rnn, backend=rnnjit.backends()["numba"])
assert_type(fast.forward(x, reset=torch.ones(4, 1) > 0), tuple[Tensor | PackedSequence, Tensor])
assert_type(
    fast.forward(x, return_states=True),
    tuple[Tensor | PackedSequence, Tensor, tuple[tuple[Tensor | PackedSequence, ...], ...]],
)
assert_type(fast.hidden_size, int)
assert_type(rnnjit.explain(fast, x).calls[0].chosen, str | None)
assert_type(rnnjit.tune(fast, x, rounds=1).calls[0].seconds, dict[str, float])
assert_type(rnnjit.gradient_flow(fast, x).norms, dict[str, Tensor])
assert_type(rnnjit.gradient_flow(fast, x).states, dict[str, dict[str, Tensor]])
assert_type(rnnjit.Stream(fast).step(x[0]), Tensor)
assert_type(rnnjit.export_artifact(fast, "artifact", target="native"), Path)
assert_type(
    rnnjit.load_artifact("artifact")(x),
    tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, ...]],
)
