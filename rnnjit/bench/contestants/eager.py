"""The baseline: PyTorch's own nn.RNN, without rnnjit."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

from rnnjit.bench.contestant import Arrays, Contestant, Ready
from rnnjit.bench.records import Case

if TYPE_CHECKING:
    from torch import Tensor, nn


class Eager(Contestant):
    """`nn.RNN` as it is; streaming passes the state from call to call."""

    name = "eager"
    title = "PyTorch nn.RNN"
    kind = "baseline"

    def absent(self) -> str:
        """Never: rnnjit needs torch."""
        return ""

    def versions(self) -> dict[str, str]:
        """Torch's."""
        return {"torch": version("torch")}

    def declines(self, case: Case) -> str:
        """Nothing but what has no meaning."""
        return bidirectional_stream(case)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The module with its arguments."""
        from rnnjit.bench.contestants import torchmodules

        torchmodules.set_up(case)
        module = torchmodules.module_of(case, arrays)
        return torchmodules.ready(case, arrays, module, lambda h0: stream_by_calls(module, h0))


def bidirectional_stream(case: Case) -> str:
    """Why nobody streams in two directions; "" of other cases."""
    if case.mode == "streaming" and case.bidirectional:
        return "the other direction needs the end of a sequence first"
    return ""


def stream_by_calls(
    module: nn.Module, h0: Tensor
) -> tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]:
    """A stream of calls of one step, the state passed from one to the next."""
    state = h0

    def step(frame: Tensor) -> Tensor:
        nonlocal state
        y, state = module(frame[None], state)
        last: Tensor = y[0]
        return last

    return step, lambda: state
