"""What `rnnjit.tune` measured, on disk: per host, stack and class of calls, seconds by backend.

A class holds all calls alike but for T and B, which are taken to the next power of two: there the
order of backends changes slowly, and a user's batches vary.

What was read, or that there was nothing to read, is remembered until `GENERATION` changes: what
another process measures meanwhile is not seen before that.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import torch

from rnnjit.dispatch.fallback import GENERATION
from rnnjit.dispatch.memory import Memory
from rnnjit.runtime import object_cache
from rnnjit.runtime.host import host, version_of
from rnnjit.spec import Problem, RNNSpec

_KIND = "tuned"
#: By cache directory, the keys of what was measured: for most users there are none.
_KEYS: Memory[str | None, frozenset[str]] = Memory(16)
#: What `recall` has read, by cache directory, stack, class of calls, thread count and device.
_READ: Memory[tuple[Hashable, ...], Mapping[str, float]] = Memory(1024)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement.

    Attributes:
        what: the host, stack and class that it holds for.
        seconds: of one call, by the name of the backend, in the order in which `auto` is to take
            them. The first is not always the fastest, see `rnnjit.tools.tuning_decision`.
    """

    what: str
    seconds: dict[str, float]


def recall(spec: RNNSpec, problem: Problem) -> Mapping[str, float]:
    """As `fetch`, but reads the disk once, and then once for each class that was measured."""
    read = _READ.answers()
    place = os.environ.get(object_cache.DIRECTORY_VARIABLE)
    key = (place, spec, class_of(problem), problem.device_index)
    found = read.get(key)
    if found is None:
        keys = _keys(place)
        there = bool(keys) and _key(_what(spec, problem)) in keys
        found = read[key] = fetch(spec, problem) if there else {}
    return found


def _keys(place: str | None) -> frozenset[str]:
    known = _KEYS.answers()
    found = known.get(place)
    if found is None:
        found = known[place] = object_cache.keys(_KIND)
    return found


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
    *kind, sizes, _ = class_of(problem)
    stack = replace(spec, dropout=0.0)
    return repr((host(), sys.implementation.cache_tag, _device(problem), stack, sizes, kind))


def class_of(problem: Problem) -> tuple[Hashable, ...]:
    """What calls have in common for which one measurement holds, beside stack and device index.

    Torch's thread count is part of it.
    """
    dtype, device, T, B, _, packed, needs_grad, _, cell = problem
    sizes = (T - 1).bit_length() if T else -1, (B - 1).bit_length() if B else -1
    return dtype, packed, needs_grad, cell, torch.get_num_threads(), sizes, device


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
