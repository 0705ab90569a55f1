"""What rnnjit's int8 layers are compared with: torch's own int8 layers, and layers in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from msgspec import structs

from rnnjit.bench.arrays import Arrays
from rnnjit.bench.contestants.base import Contestant, Ready
from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Case

if TYPE_CHECKING:
    from torch import nn

#: What the names of contestants end in that compute a case of int8 in float32.
FLOAT32 = "-float32"


class TorchInt8(Contestant):
    """The layer after `torch.ao.quantization.quantize_dynamic`, with its defaults.

    Args:
        kind: "baseline" if the ratios refer to it.
    """

    name = "torch-int8"
    title = "PyTorch int8"
    packages = ("torch",)
    quantizes = True

    def __init__(self, kind: Literal["baseline", "peer"] = "peer") -> None:
        self.kind = kind

    def declines(self, case: Case) -> str:
        """Declines what `quantize_dynamic` leaves in float32, and what it cannot pack."""
        layer = kind_of(case).layer
        if case.dtype != "int8":
            return f"its matrices are int8: it computes nothing in {case.dtype}"
        if layer == "RNN" and not case.as_cell:
            return "quantize_dynamic has no int8 nn.RNN and leaves it in float32"
        if case.proj_size:
            return "quantize_dynamic cannot pack the matrices of a projected nn.LSTM"
        return super().declines(case)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The quantized module with its arguments."""
        from rnnjit.bench.contestants import torch_modules

        torch_modules.set_up(case)
        return torch_modules.ready(case, arrays, _quantized(torch_modules.module_of(case, arrays)))


class InFloat32(Contestant):
    """Another contestant on the float32 weights of a case of int8, which it does not quantize.

    Args:
        other: the contestant.
        kind: as in `Contestant`.
    """

    quantizes = True

    def __init__(
        self, other: Contestant, kind: Literal["baseline", "backend", "peer"] = "peer"
    ) -> None:
        self._other, self.kind = other, kind
        self.name, self.title = other.name + FLOAT32, f"{other.title}, float32"

    def absent(self) -> str:
        """As the other."""
        return self._other.absent()

    def versions(self) -> dict[str, str]:
        """As the other."""
        return self._other.versions()

    def declines(self, case: Case) -> str:
        """What the other declines in float32, and cases in other dtypes than int8."""
        if case.dtype != "int8":
            return f"it stands beside int8 layers: name {self._other.name} for {case.dtype}"
        return self._other.declines(_in_float32(case))

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """As the other, in float32."""
        return self._other.prepare(_in_float32(case), arrays)

    def setup_seconds(self, case: Case) -> float:
        """As the other."""
        return self._other.setup_seconds(_in_float32(case))


def _in_float32(case: Case) -> Case:
    return structs.replace(case, dtype="float32")


def _quantized(module: nn.Module) -> nn.Module:
    import torch

    quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its successor
        # It replaces modules inside of others.
        found = quantize(torch.nn.Sequential(module), {type(module)}, torch.qint8)
    (quantized,) = found.children()
    return quantized
