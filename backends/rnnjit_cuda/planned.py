"""From a planned cut to what runs it."""

from __future__ import annotations

from functools import lru_cache

from rnnjit import LayerSpec, Rows
from rnnjit.recurrence import Recurrence
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.kernels import DType, Pass, Plan
from rnnjit_cuda.launch import Launcher
from rnnjit_cuda.per_step import PerStep
from rnnjit_cuda.persistent import Persistent
from rnnjit_cuda.plan import Cut, plan

#: Steps from which on it pays to copy W_hh for "stream", which takes as long as several steps.
_FEW = 8


def recurrence(
    layer: LayerSpec,
    rows: Rows,
    dtype: DType,
    pass_: Pass,
    launcher: Launcher,
    among: tuple[Plan, ...],
) -> Recurrence:
    """What runs the recurrences of a layer on a launcher's device; the rest as for `plan`."""
    if rows.T < _FEW and "step" in among:
        among = tuple(name for name in among if name != "stream")
    cut = _planned(layer, rows.B, dtype, pass_, launcher.properties, among)
    return PerStep(cut, launcher) if cut.key.plan == "step" else Persistent(cut, launcher)


@lru_cache(maxsize=4096)
def _planned(
    layer: LayerSpec,
    B: int,
    dtype: DType,
    pass_: Pass,
    device: DeviceProperties,
    among: tuple[Plan, ...],
) -> Cut:
    return plan(layer, B, dtype, pass_, device, among)
