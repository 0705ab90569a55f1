"""The baseline: PyTorch's own modules, without rnnjit."""

from __future__ import annotations

from rnnjit.bench.arrays import Arrays
from rnnjit.bench.contestants.base import Contestant, Ready
from rnnjit.bench.records import Case


class Eager(Contestant):
    """Unchanged `nn.RNN`, `nn.LSTM` and `nn.GRU`; streaming passes the state from call to call."""

    name = "eager"
    title = "PyTorch"
    kind = "baseline"
    packages = ("torch",)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The module with its arguments."""
        from rnnjit.bench.contestants import torch_modules

        torch_modules.set_up(case)
        return torch_modules.ready(case, arrays, torch_modules.module_of(case, arrays))
