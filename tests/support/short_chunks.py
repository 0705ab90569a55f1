"""The Inductor backend with chunks of few steps, of which a compiler makes code in seconds."""

from rnnjit_inductor import InductorBackend
from rnnjit_inductor.plan import MATRIX, ROWS, Plan

STEPS = 3


def _plan(layer, rows, dtype, device, threads, keep):
    """The planner's choice but for the steps of a chunk, and on one thread."""
    if rows.T < STEPS or not rows.N:
        return None
    return Plan(STEPS, MATRIX if rows.B == 1 else ROWS, 1)


SHORT_CHUNKS = InductorBackend(_plan)
