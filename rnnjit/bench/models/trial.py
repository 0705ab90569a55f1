"""Measures a model: eager against compiled, results first, then times."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models.case import ModelCase
from rnnjit.bench.models.nested import tensors_in
from rnnjit.bench.models.records import What
from rnnjit.bench.models.share import recurrent_part
from rnnjit.runtime.timing import Timing, interleave
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

#: Least seconds of a sample.
SAMPLE = 0.05
_SEED = 20
#: Perturbed models of which eager's error is estimated.
_PERTURBED = 3


@dataclass(frozen=True)
class Found:
    """The result of one pass of a model.

    Attributes:
        what: the pass.
        wrong: what is wrong with the results of the compiled model, "" if nothing is.
        eager: the time of eager's call; None if a result is wrong or nothing was timed.
        compiled: the same of the compiled model.
        share: share of the eager call that its recurrent part takes, from 0 to 1.
    """

    what: What
    wrong: str
    eager: Timing | None = None
    compiled: Timing | None = None
    share: float | None = None


def measure(case: ModelCase, *, rounds: int = 9) -> list[Found]:
    """Compare results and times of a model, eager and compiled, in this process.

    Args:
        case: the model.
        rounds: interleaved samples of each; 0 only compares the results.

    Raises:
        Exception: the error of the model itself, eager or compiled.
    """
    return [measure_pass(case, what, rounds=rounds) for what in passes_of(case)]


def passes_of(case: ModelCase) -> tuple[What, ...]:
    """The passes that a model has."""
    calls: dict[What, object] = {"inference": case.inference, "training": case.training}
    return tuple(what for what, call in calls.items() if call)


def measure_pass(case: ModelCase, what: What, *, rounds: int) -> Found:
    """Compare results and times of one pass of a model; arguments and errors as of `measure`."""
    wrong = _compare(case, what)
    if wrong or not rounds:
        return Found(what, wrong)
    model = _model(case, what)
    calls = {
        "eager": _call(case, what, model, torch.float32),
        "compiled": _call(case, what, _compiled(case, what), torch.float32),
    }
    part = recurrent_part(case, model, calls["eager"], training=what == "training")
    alone = {} if part is None else {"part": part}
    times = interleave(calls | alone, rounds=rounds, min_sample=SAMPLE)
    share = min(1.0, times["part"].median / times["eager"].median) if alone else 0.0
    return Found(what, "", times["eager"], times["compiled"], share)


def _compare(case: ModelCase, what: What) -> str:
    """What is wrong with the results of the compiled model, "" if nothing is."""
    eager = _results(case, what, _model(case, what), torch.float32)
    got = _results(case, what, _compiled(case, what), torch.float32)
    if case.inexact:
        # Several, since a few training steps can carry one rounding much further than another.
        models = [_perturbed(_model(case, what), seed) for seed in range(_PERTURBED)]
        others = [_results(case, what, model, torch.float32) for model in models]
    else:
        others = [_results(case, what, _model(case, what).double(), torch.float64)]
    if any(len(each) != len(eager) for each in (got, *others)):
        return f"{len(got)} results, eager gives {len(eager)}"
    for position, (value, expected, *found) in enumerate(zip(got, eager, *others, strict=True)):
        own = max(largest(errors_of(expected, other.double())) for other in found)
        true = found[0]
        scale = float(true.abs().max()) if true.numel() else 0.0
        reference = expected.double() if case.inexact else true.double()
        rule: Any = "backward" if what == "training" else "forward"
        name = "the loss" if what == "training" else f"result {position}"
        try:
            judge(name, rule, value, Expected(expected, reference, own, scale))
        except AssertionError as error:
            return str(error)
    return ""


def _results(case: ModelCase, what: What, model: Any, dtype: torch.dtype) -> list[Tensor]:
    """The tensors of an inference call, or the losses of some training steps as one tensor."""
    call = _call(case, what, model, dtype)
    torch.manual_seed(_SEED)
    if what == "training":
        return [torch.stack([call().detach().float() for _ in range(case.steps)])]
    return [leaf.detach() for leaf in tensors_in(call())]


def _call(case: ModelCase, what: What, model: Any, dtype: torch.dtype) -> Callable[[], Any]:
    if what == "training":
        assert case.training is not None
        return case.training(model, dtype)
    assert case.inference is not None
    inference = case.inference(model, dtype)

    def call() -> Any:
        with torch.no_grad():
            return inference()

    return call


def _model(case: ModelCase, what: What) -> nn.Module:
    torch.manual_seed(_SEED)
    return case.build().train(what == "training")


def _compiled(case: ModelCase, what: What) -> Any:
    return case.compile(_model(case, what))


def _perturbed(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose parameters differ in the last place, at random."""
    model = copy.deepcopy(model)
    generator = torch.Generator(device="cpu").manual_seed(_SEED + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            shape, dtype = parameter.shape, parameter.dtype
            bits = torch.randint(0, 2, shape, generator=generator, device="cpu", dtype=dtype)
            parameter.copy_(torch.nextafter(parameter, (bits * 2 - 1) * torch.inf))
    return model
