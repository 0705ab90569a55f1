"""What compiled modules have in common: who runs a call, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.nn.utils.rnn import PackedSequence

from rnnjit.autograd import run_layer
from rnnjit.backend import Backend
from rnnjit.capture import capture, weight_names, weights_of
from rnnjit.dispatch import choose, special_context
from rnnjit.failover import Failover
from rnnjit.generation import GENERATION
from rnnjit.inputs import Prepared, check_weights, initial_state, prepare, restore
from rnnjit.quick import Route, shortcut
from rnnjit.reference import EagerBackend, ReferenceBackend
from rnnjit.registry import key_of, resolve
from rnnjit.spec import Problem, RNNSpec
from rnnjit.stack import LayerRun, run_stack
from rnnjit.team import FORK, one_thread

_CHOICES_KEPT = 512
#: Routes kept for one shape of input: with gradients or without, and the like.
_KINDS_KEPT = 4
#: Attributes whose assignment makes remembered routes wrong.
_CONFIGURATION = frozenset({*RNNSpec.__dataclass_fields__, "mode", "training"})
_REFERENCE = ReferenceBackend()
_EAGER = EagerBackend()
Result = tuple[Tensor | PackedSequence, Tensor]


class Calls(nn.Module):
    """A mixin for modules that stand in for one of torch's; the other base is torch's.

    Attributes:
        _source_class: the class that the module was made from.
    """

    _source_class: type[nn.Module]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not constructed: call rnnjit.compile(module)")

    @property
    def backend(self) -> str | Backend:
        """What was asked for; assigning takes effect from the next call on."""
        return self._backend

    @backend.setter
    def backend(self, backend: str | Backend) -> None:
        resolve(backend)
        self._backend = backend
        self._key = key_of(backend)
        self._forget_choices()

    def _forget_choices(self) -> None:
        """Choose backends anew from the next call on."""
        generation = GENERATION.now
        self._choices: dict[tuple[RNNSpec, Problem], Backend] = {}
        self._routes: dict[torch.Size, tuple[Route, ...]] = {}
        self._generation = generation

    def _call(self, x: Any, hx: Tensor | None) -> Result | None:
        """The result of a call in nn.RNN's form, or None if torch's own layer has to run it.

        Other threads may call too, and may change the configuration or the backend meanwhile. What
        is found in a call is remembered in the dictionaries that were there before it looked: a
        change replaces them.
        """
        if FORK.forked and torch.get_num_threads() > 1:
            with one_thread():
                return self._call(x, hx)
        if self._generation != GENERATION.now:
            self._forget_choices()
        # The short way may compute a whole stack by one call, which has no ranges for its layers.
        profiled, routes = profiler._is_profiler_enabled, self._routes
        if type(x) is Tensor and not profiled:
            try:
                known = routes.get(x.shape, ())
            except RuntimeError:  # a nested tensor, which has no shape
                known = ()
            for route in known:
                if (result := route(self, x, hx)) is not None:
                    return result
        if torch._C._get_tracing_state() is not None:
            return None
        choices = self._choices
        spec, weights, training = capture(self), weights_of(self), self.training
        prepared = prepare(spec, weights[0], x, hx)
        check_weights(spec, weight_names(self), weights)
        h0 = initial_state(spec, prepared)
        problem = problem_of(prepared, h0, weights)
        special = special_context(prepared.x, h0, *weights)
        if special is None:
            backend = self._backend_for(spec, problem, choices)
        elif special.startswith("autocast"):
            return None
        else:
            backend = _REFERENCE
        failover = Failover(spec, problem) if self._backend == "auto" and not special else None
        run: LayerRun = failover or run_layer
        y, h_n = run_stack(
            *(backend, spec, prepared.rows, prepared.x, h0, weights, training),
            *(problem.needs_grad, run),
        )
        if special is None and not profiled and not isinstance(x, PackedSequence):
            ways = shortcut(backend, spec, problem, training, x, h0, weights, failover)
            if ways is not None:
                _remember(routes, Route(*ways, weight_names(self), x, h0, weights), x.shape)
        return restore(spec, prepared, y, h_n)

    def _traced_call(self, spec: RNNSpec, x: Tensor, hx: Tensor | None) -> Result | None:
        """What torch.compile and torch.export trace: one operator for each layer.

        It is `_call` without the caches, through which nothing could be traced.
        """
        # Here, since torch.library brings the whole of torch's compiler with it.
        from rnnjit.traced import TracedBackend

        weights = tuple([getattr(self, name) for name in weight_names(self)])
        if torch.is_autocast_enabled(weights[0].device.type):
            return None
        prepared = prepare(spec, weights[0], x, hx)
        h0 = initial_state(spec, prepared)
        needs_grad = _needs_grad(prepared.x, h0, weights)
        transformed = torch._C._are_functorch_transforms_active()
        backend: Backend = _REFERENCE if transformed else TracedBackend(self._key)
        if torch.onnx.is_in_onnx_export():
            backend = _EAGER  # of whose operators ONNX has its own; it has none of ours
        y, h_n = run_stack(
            backend, spec, prepared.rows, prepared.x, h0, weights, self.training, needs_grad
        )
        return restore(spec, prepared, y, h_n)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _CONFIGURATION or (isinstance(value, Tensor) and value.is_nested):
            self.__dict__["_routes"] = {}

    def _backend_for(
        self, spec: RNNSpec, problem: Problem, choices: dict[tuple[RNNSpec, Problem], Backend]
    ) -> Backend:
        chosen = choices.get((spec, problem))
        if chosen is None:
            chosen = choose(spec, problem, resolve(self._backend))
            if len(choices) >= _CHOICES_KEPT:
                choices.clear()
            choices[spec, problem] = chosen
        return chosen

    def _get_name(self) -> str:
        return type(self).__name__.replace("CompiledRNN", "RNN")

    def __getstate__(self) -> dict[str, Any]:
        parent: Any = super()
        # nn.Module has no __getstate__ of its own before Python 3.11.
        state = parent.__getstate__() if hasattr(parent, "__getstate__") else self.__dict__
        return {**state, "_choices": {}, "_routes": {}}

    def __setstate__(self, d: dict[str, Any]) -> None:
        super().__setstate__(d)  # type: ignore[no-untyped-call]  # torch has no types here
        self._key = key_of(self._backend)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        # A class made by `compiled_class` cannot be found by its name, but its source can.
        from rnnjit.rebuild import empty

        return empty, (self._source_class,), self.__getstate__()


def _remember(routes: dict[torch.Size, tuple[Route, ...]], route: Route, shape: torch.Size) -> None:
    """Keep a short way for the next call with input of this shape."""
    if len(routes) >= _CHOICES_KEPT:
        routes.clear()
    others = routes.get(shape, ())
    routes[shape] = (route, *others[: _KINDS_KEPT - 1])


def problem_of(prepared: Prepared, h0: Tensor, weights: tuple[Tensor, ...]) -> Problem:
    """The facts of a call that a backend decides upon."""
    x, rows = prepared.x, prepared.rows
    packed, needs_grad = prepared.packed is not None, _needs_grad(x, h0, weights)
    where, index = x.device.type, x.get_device()
    return Problem(x.dtype, where, rows.T, rows.B, rows.N, packed, needs_grad, index)


def _needs_grad(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or h0.requires_grad or any([w.requires_grad for w in weights])  # noqa: C419 - faster
    )
