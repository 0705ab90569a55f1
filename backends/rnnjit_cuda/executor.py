"""From a plan to the recurrence that runs it."""

from __future__ import annotations

from functools import lru_cache

from rnnjit import LayerSpec, Rows
from rnnjit.recurrence import Recurrence
from rnnjit_cuda.cell_per_step import CellPerStep
from rnnjit_cuda.cell_persistent import CellPersistent
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.kernels import DType, Family, Pass
from rnnjit_cuda.launch import Launcher
from rnnjit_cuda.per_step import PerStep
from rnnjit_cuda.persistent import Persistent
from rnnjit_cuda.plan import Plan, plan

#: With fewer steps, "stream" does not pay: copying W_hh for it takes as long as several steps.
_FEW = 8


def recurrence(
    layer: LayerSpec,
    rows: Rows,
    dtype: DType,
    pass_: Pass,
    launcher: Launcher,
    among: tuple[Family, ...],
    *,
    recorded: bool = False,
) -> Recurrence:
    """The recurrence of a layer on a launcher's device.

    Args:
        layer: what the layer is.
        rows: how its rows are laid over time.
        dtype: of its tensors.
        pass_: which recurrence.
        launcher: starts the kernels.
        among: as for `plan`.
        recorded: whether the states after every step have gradients.
    """
    if rows.T < _FEW and "step" in among:
        among = tuple(name for name in among if name != "stream")
    chosen = _cached_plan(layer, rows.B, dtype, pass_, launcher.properties, among)
    one_by_one = chosen.key.family == "step"
    if recorded and not one_by_one:
        chosen = chosen._replace(key=chosen.key._replace(recorded=True))
    if layer.cell.is_elman:
        return (PerStep if one_by_one else Persistent)(chosen, launcher)
    return (CellPerStep if one_by_one else CellPersistent)(chosen, launcher)


@lru_cache(maxsize=4096)
def _cached_plan(
    layer: LayerSpec,
    B: int,
    dtype: DType,
    pass_: Pass,
    device: DeviceProperties,
    among: tuple[Family, ...],
) -> Plan:
    return plan(layer, B, dtype, pass_, device, among)
