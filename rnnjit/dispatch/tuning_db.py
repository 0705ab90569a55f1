"""What `rnnjit.tune` measured, on disk: per host, stack and class of calls, seconds by backend.

A class holds all calls alike but for T and B, which are taken to the next power of two: there the
order of backends changes slowly, and a user's batches vary.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import torch

from rnnjit.dispatch.fallback import GENERATION
from rnnjit.runtime import object_cache
from rnnjit.runtime.host import host, version_of
from rnnjit.spec import Problem, RNNSpec

_KIND = "tuned"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement.

    Attributes:
        what: the host, stack and class that it holds for.
        seconds: of one call, by the name of the backend.
    """

    what: str
    seconds: dict[str, float]


def fetch(spec: RNNSpec, problem: Problem) -> dict[str, float]:
    """The measured seconds of a call like `problem`, by backend; empty if there are none."""
    what = _what(spec, problem)
    content = object_cache.fetch(_key(what), _KIND)
    if content is None:
        return {}
    try:
        record = msgspec.json.decode(content, type=Record)
    except msgspec.MsgspecError:
        return {}
    return record.seconds if record.what == what else {}


def keep(spec: RNNSpec, problem: Problem, seconds: dict[str, float]) -> None:
    """Remember a measurement; choices are made anew from now on."""
    what = _what(spec, problem)
    object_cache.keep(_key(what), msgspec.json.encode(Record(what, seconds)), _KIND)
    GENERATION.advance()


def _what(spec: RNNSpec, problem: Problem) -> str:
    sizes = [(n - 1).bit_length() if n else -1 for n in (problem.T, problem.B)]
    kind = (problem.dtype, problem.packed, problem.needs_grad, torch.get_num_threads())
    stack = replace(spec, dropout=0.0)
    return repr((host(), sys.implementation.cache_tag, _device(problem), stack, sizes, kind))


def _key(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:32]


@cache
def _device_name(kind: str, index: int) -> str:
    module: Any = getattr(torch, kind, None)
    naming = getattr(module, "get_device_name", None)
    return str(naming(index)) if naming is not None and index >= 0 else ""


def _device(problem: Problem) -> tuple[str | None, ...]:
    """A device's type and name, and what compiles for it beside what `host` names."""
    if problem.device == "cpu":
        return (problem.device,)
    name = _device_name(problem.device, problem.device_index)
    return problem.device, name, version_of("numba-cuda")
