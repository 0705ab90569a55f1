"""What compiled modules have in common: the choice of a backend for a call, and its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.dispatch.fallback import GENERATION, RAISE, Fallback
from rnnjit.dispatch.fast_path import FastPath
from rnnjit.dispatch.registry import key_of, resolve
from rnnjit.execution.fast_call import fast_call
from rnnjit.execution.stack import run_stack
from rnnjit.frontend.arguments import Result, initial_states, prepare, restore
from rnnjit.frontend.capture import weight_names
from rnnjit.frontend.lowering import Call, lower_sequence, needs_grad
from rnnjit.reference import EagerBackend, ReferenceBackend
from rnnjit.runtime.openmp import FORK, one_thread
from rnnjit.runtime.torch_private import profiler_runs, scripting, transforming_while_traced
from rnnjit.spec import Problem, RNNSpec

_CHOICES_KEPT = 512
#: Fast paths kept for one shape of input: with and without gradients, for example.
_KINDS_KEPT = 4
#: Attributes whose assignment invalidates the cached fast paths.
_CONFIGURATION = frozenset({*RNNSpec.__dataclass_fields__, "mode", "nonlinearity", "training"})
_REFERENCE = ReferenceBackend()
_EAGER = EagerBackend()
_Choices = dict[tuple[RNNSpec, Problem], tuple[Backend, Fallback]]


class CompiledBase(nn.Module):
    """A mixin for compiled modules; their other base is torch's own class, or that class's base.

    Attributes:
        _source_class: the class of the module that it was compiled from.
        _torch_class: the torch class that it replaces.
    """

    _source_class: type[nn.Module]
    _torch_class: type[nn.Module]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not constructed: call rnnjit.compile(module)")

    @property
    def backend(self) -> str | Backend:
        """The `backend` argument of `compile`; assignment takes effect at the next call.

        Raises:
            TypeError: (assigning) neither a string nor a `Backend`.
            ValueError: (assigning) no installed backend has that name.
        """
        return self._backend

    @backend.setter
    def backend(self, backend: str | Backend) -> None:
        resolve(backend)
        self._backend = backend
        self._key = key_of(backend)
        self._forget_choices()

    def _forget_choices(self) -> None:
        """Drop the cached choices: the next call chooses again."""
        generation = GENERATION.now
        self._choices: _Choices = {}
        self._fast_paths: dict[torch.Size, tuple[FastPath, ...]] = {}
        self._generation = generation

    def _call(self, x: Any, hx: Any) -> Result | None:
        """The result of a call in a layer's form, or None if torch's own layer has to run it.

        Other threads may call too, or change the configuration or the backend at the same time. A
        change replaces the dictionaries that hold the cached choices. A call stores its choice in
        the dictionaries that it read at the start, so that an outdated choice is never used.
        """
        if FORK.forked and torch.get_num_threads() > 1:
            with one_thread():
                return self._call(x, hx)
        if self._generation != GENERATION.now:
            self._forget_choices()
        # No fast path under a profiler: it may run a whole stack in one call, without layer ranges.
        profiled, paths, choices = profiler_runs(), self._fast_paths, self._choices
        if type(x) is Tensor and not profiled:
            found = self._by_fast_path(paths, x, hx)
            if found is not None:
                return found
        if scripting():
            return None
        training = self.training
        call = lower_sequence(self, x, hx)
        if call.special is None:
            backend, fallback = self._choice(call, choices)
        elif call.special.startswith("autocast"):
            return None
        else:
            backend, fallback = _REFERENCE, RAISE
        y, h_n = run_stack(
            backend,
            call.spec,
            call.rows,
            call.x,
            call.hx,
            call.weights,
            training,
            call.problem.needs_grad,
            fallback,
        )
        if call.special is None and not profiled and not isinstance(x, PackedSequence):
            run = fast_call(
                *(backend, call.spec, call.problem, training, x, call.hx, call.weights, fallback)
            )
            if run is not None:
                path = FastPath(run, weight_names(self), x, call.hx, call.weights)
                _remember(paths, path, x.shape)
        return call.restore(y, h_n)

    def _by_fast_path(
        self, paths: dict[torch.Size, tuple[FastPath, ...]], x: Tensor, hx: Any
    ) -> Result | None:
        """The result of a call that matches a cached fast path, or None if none matches."""
        try:
            known = paths.get(x.shape)
        except RuntimeError:  # a nested tensor, which has no shape
            return None
        if known is None:
            return None
        for path in known:
            if (found := path(self, x, hx)) is not None:
                y, h_n = found
                return y, h_n[0] if len(h_n) == 1 else h_n
        return None

    def _traced_call(self, spec: RNNSpec, x: Tensor, hx: Any) -> Result | None:
        """What torch.compile and torch.export trace: one operator for each layer.

        It is `_call` without the caches, which cannot be traced.
        """
        # Imported here, since torch.library imports the whole of torch's compiler.
        from rnnjit.execution.torch_ops import TracedBackend

        weights = tuple([getattr(self, name) for name in weight_names(self)])
        if torch.is_autocast_enabled(weights[0].device.type):
            return None
        prepared = prepare(spec, weights[0], x, hx)
        states = initial_states(spec, prepared)
        recorded = needs_grad(prepared.x, states, weights)
        backend: Backend = TracedBackend(self._key)
        if transforming_while_traced():
            backend = _REFERENCE
        if torch.onnx.is_in_onnx_export():
            backend = _EAGER  # ONNX has torch's recurrent operators, but not ours
        y, h_n = run_stack(
            backend, spec, prepared.rows, prepared.x, states, weights, self.training, recorded
        )
        return restore(spec, prepared, y, h_n)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _CONFIGURATION or (isinstance(value, Tensor) and value.is_nested):
            self.__dict__["_fast_paths"] = {}

    def _choice(self, call: Call, choices: _Choices) -> tuple[Backend, Fallback]:
        found = choices.get((call.spec, call.problem))
        if found is None:
            found = call.choose(resolve(self._backend))
            if len(choices) >= _CHOICES_KEPT:
                choices.clear()
            choices[call.spec, call.problem] = found
        return found

    def _get_name(self) -> str:
        name = self._torch_class.__name__
        return type(self).__name__.replace(f"Compiled{name}", name)

    def __getstate__(self) -> dict[str, Any]:
        parent: Any = super()
        # nn.Module has no __getstate__ of its own before Python 3.11.
        state = parent.__getstate__() if hasattr(parent, "__getstate__") else self.__dict__
        return {**state, "_choices": {}, "_fast_paths": {}}

    def __setstate__(self, d: dict[str, Any]) -> None:
        super().__setstate__(d)  # type: ignore[no-untyped-call]  # torch has no types here
        self._key = key_of(self._backend)


def _remember(
    paths: dict[torch.Size, tuple[FastPath, ...]], path: FastPath, shape: torch.Size
) -> None:
    """Keep a fast path for the next call with input of this shape."""
    if len(paths) >= _CHOICES_KEPT:
        paths.clear()
    others = paths.get(shape, ())
    paths[shape] = (path, *others[: _KINDS_KEPT - 1])
