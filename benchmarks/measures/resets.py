"""Calls with resets: by kernels that reset the states, against the packed batch of the segments."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import rnnjit
from measures.device import PASSES, Call, medians, tf32
from rnnjit import Backend

#: The part of all steps before which a sequence starts anew: episodes of 50 steps.
SHARE = 0.02


class WithResets(nn.Module):
    """A layer that is called with a mask, and with learnt states that resets start from.

    Args:
        layer: a compiled layer of one direction.
        mask: boolean `[T, B]`.
        starts: for each state `[1, H]`, which autograd records.
    """

    def __init__(self, layer: nn.Module, mask: Tensor, starts: list[nn.Parameter]) -> None:
        super().__init__()
        self.layer, self.starts = layer, nn.ParameterList(starts)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """The layer's results."""
        starts = tuple(self.starts)
        found: tuple[Tensor, Any] = self.layer(
            x, None, self.mask, starts if len(starts) > 1 else starts[0]
        )
        return found


def measure(
    backend: Backend,
    cell: str,
    shape: tuple[int, int, int],
    dtype: str,
    device: str,
    rounds: int,
    close: float,
) -> dict[str, Any]:
    """Differences of values and gradients, whether the host waits, and seconds of both ways.

    Args:
        backend: one that declares `resets_in_kernel`.
        cell: a key of `measures.device.LAYERS`.
        shape: T, B and H.
        dtype: name of torch's.
        device: where.
        rounds: samples of each way.
        close: the largest differences that are right; where there are others, nothing is timed.
    """
    call = Call(*shape, dtype, False, device, cell)
    T, B, H = shape
    mask = (torch.rand(T, B, device="cpu", dtype=torch.float32) < SHARE).to(device)
    options: Any = {"dtype": getattr(torch, dtype), "device": device}
    starts = [nn.Parameter(torch.randn(1, H, **options)) for _ in range(1 + (cell == "lstm"))]
    kernels, cut = (
        WithResets(rnnjit.compile(call.rnn, backend=each), mask, starts)
        for each in (backend, _cutting(backend))
    )
    found: dict[str, Any] = {"cell": cell, "shape": shape, "dtype": dtype, "share": SHARE}
    with tf32(False):
        with torch.no_grad():
            found["difference"] = float((call.forward(kernels) - call.forward(cut)).abs().max())
        found["gradients"] = call.apart(cut, kernels)
        found["host_waits"] = _waits(call, kernels, device)
        found["right"] = max(found["difference"], found["gradients"]) <= close
        if found["right"]:
            for passes in PASSES:
                both = {"kernels": call.run(kernels, passes), "cut": call.run(cut, passes)}
                found[passes] = medians(both, rounds, device)
    return found


def described(row: dict[str, Any]) -> str:
    """A row of `measure` in a line."""
    shape = ", ".join(map(str, row["shape"]))
    line = "{cell}, {dtype}, T, B, H = {shape}: {difference:.1e}, gradients {gradients:.1e}"
    said = [line.format(**row | {"shape": shape}), f"host waits: {row['host_waits']}"]
    for passes in PASSES if row["right"] else ():
        times = row[passes]
        said.append(f"{passes} {times['kernels'] * 1e3:.3g} ms, cut {times['cut'] * 1e3:.3g} ms")
    return "; ".join(said if row["right"] else [*said, "WRONG"])


def _cutting(backend: Backend) -> Backend:
    """The same backend, which gets the packed batches of segments."""
    found = copy.copy(backend)
    found.resets_in_kernel = False  # type: ignore[misc]  # of this object alone
    return found


def _waits(call: Call, module: nn.Module, device: str) -> str:
    """Whether both passes make the host wait: "no", or torch's message."""
    if device == "cpu":
        return "not run: there is no device"
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.gradients(module)
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"
