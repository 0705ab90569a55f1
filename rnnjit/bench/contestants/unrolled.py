"""`torch.compile` on a recurrent layer that is unrolled step by step in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rnnjit.bench.arrays import Arrays, suffixes, weight_shapes
from rnnjit.bench.contestants.base import Contestant, Ready
from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Case

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rnnjit.bench.contestants.torch_modules import State

#: The most steps, of all layers and directions, that it compiles. Compile time grows with the
#: steps: with the backward pass and empty caches, from 17 s for 8 steps to 29 s for 128.
MOST_STEPS = 128


class Unrolled(Contestant):
    """A loop over the steps, compiled by Inductor with defaults for the exact shapes."""

    name = "unrolled"
    title = "torch.compile, unrolled"
    packages = ("torch",)

    def declines(self, case: Case) -> str:
        """Declines calls that take minutes to compile, and packed ones."""
        steps = _steps(case)
        if steps > MOST_STEPS:
            return f"compiling {steps} steps takes too long: {MOST_STEPS} are the most"
        if case.packed:
            return "a packed batch has other sizes at every step, each compiled anew"
        return super().declines(case)

    def setup_seconds(self, case: Case) -> float:
        """Grows with the steps."""
        return 5.0 + _steps(case) * (0.15 if case.trains else 0.1)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The compiled module with its arguments; compiling is part of the first call."""
        import torch

        from rnnjit.bench.contestants import torch_modules

        torch_modules.set_up(case)
        torch.compiler.reset()  # else this would count as a recompilation of the previous case
        module = _module(case, arrays)
        module.compile(fullgraph=True, dynamic=False)
        return torch_modules.ready(case, arrays, module)


def _steps(case: Case) -> int:
    return case.T * case.layers * case.directions


def _module(case: Case, arrays: Arrays) -> nn.Module:
    import torch

    from rnnjit.bench.contestants.torch_modules import tensor_of

    class Loop(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in weight_shapes(case):
                self.register_parameter(name, torch.nn.Parameter(tensor_of(arrays.weights[name])))

        def forward(self, x: Tensor, hx: State) -> tuple[Tensor, State]:
            return _unrolled(case, dict(self.named_parameters()), x, hx)

    return Loop()


def _unrolled(
    case: Case, weights: Mapping[str, Tensor], x: Tensor, hx: State
) -> tuple[Tensor, State]:
    """The layer's `(y, last states)` of a dense call, with one input projection for all steps."""
    import torch
    from torch.nn.functional import linear

    from rnnjit.bench.contestants.torch_modules import as_state, as_tuple

    kind = kind_of(case)
    gates = len(kind.gates)
    unbound = zip(*(state.unbind() for state in as_tuple(hx)), strict=True)
    last = []
    for layer in range(case.layers):
        found = []
        for suffix in suffixes(case, layer):
            w_ih, w_hh, b_ih, b_hh = (
                weights[f"{part}_{suffix}"]
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            w_hr = weights.get(f"weight_hr_{suffix}")
            inside = b_hh if kind.apart else None
            steps = linear(x, w_ih, b_ih if kind.apart else b_ih + b_hh).unbind()
            states, ys = next(unbound), []
            backwards = suffix.endswith("reverse")
            for row in reversed(steps) if backwards else steps:
                zx, zh = row.chunk(gates, -1), linear(states[0], w_hh, inside).chunk(gates, -1)
                h, *others = kind.step(torch, case.nonlinearity, zx, zh, states)
                states = (h if w_hr is None else linear(h, w_hr), *others)
                ys.append(states[0])
            last.append(states)
            found.append(torch.stack(ys[::-1] if backwards else ys))
        x = torch.cat(found, dim=-1)
    return x, as_state(tuple(map(torch.stack, zip(*last, strict=True))))
