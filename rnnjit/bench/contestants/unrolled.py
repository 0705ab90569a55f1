"""What `torch.compile` makes of an RNN that is written out, step by step, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from rnnjit.bench.arrays import suffixes, weight_shapes
from rnnjit.bench.contestant import Arrays, Contestant, Ready
from rnnjit.bench.contestants.eager import bidirectional_stream, stream_by_calls
from rnnjit.bench.records import Case

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Steps, of all layers and directions, that are still compiled. The time to compile grows with
#: them: with the backward pass from 17 s for 8 steps to 29 s for 128, where nothing is cached.
MOST_STEPS = 128


class Unrolled(Contestant):
    """A loop over the steps, compiled by Inductor's defaults for the very shapes of the case."""

    name = "unrolled"
    title = "torch.compile, unrolled"

    def absent(self) -> str:
        """Never: rnnjit needs torch. Without a C++ compiler it fails, and says so."""
        return ""

    def versions(self) -> dict[str, str]:
        """Torch's."""
        return {"torch": version("torch")}

    def declines(self, case: Case) -> str:
        """Calls that take minutes to compile, and packed ones."""
        steps = _steps(case)
        if steps > MOST_STEPS:
            return f"compiling {steps} steps takes too long: {MOST_STEPS} are the most"
        if case.packed:
            return "a packed batch has other sizes at every step, each compiled anew"
        return bidirectional_stream(case)

    def patience(self, case: Case) -> float:
        """Grows with the steps."""
        return 5.0 + _steps(case) * (0.15 if case.mode == "training" else 0.1)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The compiled module with its arguments; compiling is part of the first call."""
        import torch

        from rnnjit.bench.contestants import torchmodules

        torchmodules.set_up(case)
        torch.compiler.reset()  # what was compiled before would count as a recompilation
        module = _module(case, arrays)
        module.compile(fullgraph=True, dynamic=False)
        return torchmodules.ready(case, arrays, module, lambda h0: stream_by_calls(module, h0))


def _steps(case: Case) -> int:
    return case.T * case.layers * (2 if case.bidirectional else 1)


def _module(case: Case, arrays: Arrays) -> nn.Module:
    import torch

    class Loop(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in weight_shapes(case):
                self.register_parameter(
                    name, torch.nn.Parameter(torch.tensor(arrays.weights[name]))
                )

        def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
            return _unrolled(case, dict(self.named_parameters()), x, h0)

    return Loop()


def _unrolled(
    case: Case, weights: Mapping[str, Tensor], x: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor]:
    """nn.RNN's `(y, h_n)` of a dense call, the input's product taken for all steps at once."""
    import torch
    from torch.nn.functional import linear

    activation = torch.tanh if case.nonlinearity == "tanh" else torch.relu
    states = iter(h0.unbind())
    last = []
    for layer in range(case.layers):
        found = []
        for suffix in suffixes(case, layer):
            w_ih, w_hh = weights[f"weight_ih_{suffix}"], weights[f"weight_hh_{suffix}"]
            bias = weights[f"bias_ih_{suffix}"] + weights[f"bias_hh_{suffix}"]
            steps = linear(x, w_ih, bias).unbind()
            h, ys = next(states), []
            backwards = suffix.endswith("reverse")
            for row in reversed(steps) if backwards else steps:
                h = activation(row + linear(h, w_hh))
                ys.append(h)
            last.append(h)
            found.append(torch.stack(ys[::-1] if backwards else ys))
        x = torch.cat(found, dim=-1)
    return x, torch.stack(last)
