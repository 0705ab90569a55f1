"""What `rnnjit.explain` reports on calls of torch's layers whose kernels reset the states."""

from __future__ import annotations

from typing import Any

import torch

from rnnjit.backend import Backend
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.choice import choose, verdict, verdicts
from rnnjit.dispatch.fallback import RAISE, Fallback
from rnnjit.frontend import resets
from rnnjit.frontend.cell_loop import Resets
from rnnjit.frontend.compiled_layer import CompiledLayer
from rnnjit.frontend.lowering import lower
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.reset_layers import RESETS_ITSELF, chosen_stack, resets_in_kernel
from rnnjit.spec import Problem, RNNSpec
from rnnjit.tools.observe import Seen
from rnnjit.tools.reports import CallReport


def report_resets(seen: Seen) -> tuple[CallReport, ...]:
    """The reports on the layers of a call that reset themselves; none if they do not."""
    module, wanted, x, hx = seen.module, seen.wanted, seen.input, seen.hx
    if not isinstance(module, CompiledLayer) or overriding(module, x, hx):
        return ()
    call = lower(module, x, hx)
    if module._weights_assigned or call.special is not None:
        return ()
    resets.check(x, seen.reset)
    starts = resets.starting_states(call.spec, call.x, seen.reset_to)
    given: Any = seen.reset
    cuts = Resets(resets.time_major(call.spec, given), starts)
    if not cuts.mask.numel() or resets.is_single_step(call.spec, call.x):
        return ()

    def by_name(spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
        return choose(spec, problem, wanted), RAISE

    recorded = call.problem.needs_grad or (torch.is_grad_enabled() and cuts.recorded)
    problem = call.problem._replace(needs_grad=recorded)
    if not resets_in_kernel(by_name, call.spec, problem):
        return ()
    layers = chosen_stack(by_name, call.spec, problem, cuts, every=seen.return_states)
    found = []
    for index, chosen in enumerate(layers or ()):
        spec = chosen.layer.spec
        asked = (verdict(wanted, spec, problem),) if wanted else tuple(verdicts(spec, problem))
        named = f"backend {wanted.name!r} was asked for by name; " if wanted else ""
        name = seen.name if len(layers or ()) == 1 else f"{seen.name or 'module'}, layer {index}"
        seconds = tuning_db.recall(spec, problem)
        note = f"{named}{RESETS_ITSELF}"
        found.append(
            CallReport(name, seen.kind, problem, chosen.backend.name, note, asked, seconds)
        )
    return tuple(found)
