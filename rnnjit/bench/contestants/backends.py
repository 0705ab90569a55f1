"""The installed backends of rnnjit as contestants, each used by its name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from rnnjit.bench.arrays import Arrays, lengths_of, storage
from rnnjit.bench.contestants.base import Contestant, Ready
from rnnjit.bench.contestants.eager import Eager
from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Case

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rnnjit.spec import Problem, RNNSpec


AUTO = "auto"


class Compiled(Contestant):
    """`rnnjit.compile(module, backend=name)`, and `rnnjit.Stream` when streaming.

    In int8 it is `rnnjit.quantize(module, backend=name)`.

    The name may be "auto": then each call goes to the backend that is chosen for it.
    """

    kind = "backend"
    quantizes = True

    def __init__(self, name: str) -> None:
        self.name, self.title = name, f"rnnjit {name}"

    def absent(self) -> str:
        """What the backend lacks."""
        from rnnjit.dispatch.registry import backends, lacking

        return "" if self.name == AUTO else "; ".join(lacking(backends()[self.name]))

    def versions(self) -> dict[str, str]:
        """The version of the distribution that provides the backend."""
        from rnnjit.dispatch.registry import GROUP

        found = entry_points(group=GROUP, name=self.name)
        return {point.dist.name: point.dist.version for point in found if point.dist is not None}

    def declines(self, case: Case) -> str:
        """The backend's own reasons, or why `rnnjit.compile` leaves such a module as it is."""
        from rnnjit.bench.contestants import torch_modules
        from rnnjit.dispatch.choice import verdict
        from rnnjit.dispatch.registry import backends
        from rnnjit.frontend.compile import why_left

        backend = None if self.name == AUTO else backends()[self.name]
        reasons = () if backend is None else verdict(backend, *_problem(case)).reasons
        return (
            super().declines(case)
            or "; ".join(reasons)
            or why_left(torch_modules.empty(case, "meta"), backend)
        )

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The compiled module with its arguments."""
        import rnnjit
        from rnnjit.bench.contestants import torch_modules

        torch_modules.set_up(case)
        convert = rnnjit.quantize if case.dtype == "int8" else rnnjit.compile
        module = convert(torch_modules.module_of(case, arrays), backend=self.name)
        return torch_modules.ready(case, arrays, module, lambda hx: _stream(module, hx))


def installed() -> list[Contestant]:
    """A contestant for every installed backend but eager, in the order of `auto`."""
    from rnnjit.dispatch.registry import backends

    return [Compiled(name) for name in backends() if name != Eager.name]


def quantizing() -> list[Contestant]:
    """Those of `installed` that run int8 layers."""
    from rnnjit.dispatch.registry import backends

    found = backends()
    return [each for each in installed() if found[each.name].quantized]


def _problem(case: Case) -> tuple[RNNSpec, Problem]:
    import torch

    from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
    from rnnjit.spec import Problem, RNNSpec

    cells = {cell.name: cell for cell in (RNN_TANH, RNN_RELU, LSTM, GRU)}
    spec = RNNSpec(
        case.I,
        case.H,
        case.layers,
        cell=cells[case.nonlinearity if kind_of(case).nonlinear else case.cell],
        bidirectional=case.bidirectional,
        proj_size=case.proj_size,
        quantized=case.dtype == "int8",
    )
    N, dtype = int(lengths_of(case).sum()), getattr(torch, storage(case.dtype))
    return spec, Problem(dtype, "cpu", case.T, case.B, N, case.packed, case.trains)


def _stream(
    module: nn.Module, hx: Tensor | tuple[Tensor, ...]
) -> tuple[Callable[[Tensor], Tensor], Callable[[], Tensor | tuple[Tensor, ...]]]:
    from rnnjit.frontend.stream import Stream

    stream = Stream(module, (hx if not isinstance(hx, tuple) else hx[0]).shape[1])
    stream.state = hx
    return stream.step, lambda: stream.state
