"""`CompiledRNN`: the module that stands in for an nn.RNN, sharing its Parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CellType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.capture import NONLINEARITY, capture, weights_of
from rnnjit.dispatch import choose, special_context
from rnnjit.inputs import Prepared, check_weights, initial_state, prepare, restore
from rnnjit.quick import Route, shortcut
from rnnjit.reference import EagerBackend, ReferenceBackend
from rnnjit.registry import key_of, resolve
from rnnjit.spec import Problem, RNNSpec
from rnnjit.stack import run_stack
from rnnjit.tuned import GENERATION

_CHOICES_KEPT = 512
#: Routes kept for one shape of input: with gradients or without, and the like.
_KINDS_KEPT = 4
#: Attributes whose assignment makes remembered routes wrong.
_CONFIGURATION = frozenset({*RNNSpec.__dataclass_fields__, "mode", "training"})
_REFERENCE = ReferenceBackend()
_EAGER = EagerBackend()
_Result = tuple[Tensor | PackedSequence, Tensor]
# It asks of its module what every RNNBase has; where torch rewrites the layer it is the layer.
_eager_forward = cast("Callable[..., _Result]", nn.RNN.forward)


class CompiledRNN(nn.RNNBase):
    """An nn.RNN whose forward and backward passes run on rnnjit's backends.

    Made by `rnnjit.compile`, never directly. It has the Parameters, the `state_dict`, the hooks
    and the representation of the module that it was made from. It derives from `nn.RNNBase`, not
    from `nn.RNN`, at which torch.compile breaks the graph.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str
    _source_class: type[nn.Module] = nn.RNN

    def __init__(self) -> None:
        raise TypeError("CompiledRNN is not constructed: call rnnjit.compile(module)")

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
        self._choices: dict[Problem, Backend] = {}
        self._choices_spec: RNNSpec | None = None
        self._routes: dict[torch.Size, tuple[Route, ...]] = {}
        self._generation = GENERATION.now

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.RNN's own name
        hx: Tensor | None = None,
    ) -> _Result:
        """Run the layer; arguments, results and exceptions are those of `nn.RNN.forward`.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched; zeros if None.

        Returns:
            The states of the last layer at every step (`[T, B, D*H]`, or in the input's form) and
            the last state of every layer and direction (`[L*D, B, H]`).

        Raises:
            UnsupportedError: the backend that was asked for by name declines the call.
        """
        if torch.compiler.is_compiling():
            return self._traced(input, hx)
        if self._generation != GENERATION.now:
            self._forget_choices()
        # The short way may compute a whole stack by one call, which has no ranges for its layers.
        profiled = profiler._is_profiler_enabled
        if type(input) is Tensor and not profiled:
            for route in self._routes.get(input.shape, ()):
                if (result := route(self, input, hx)) is not None:
                    return result
        if torch._C._get_tracing_state() is not None:
            return _eager_forward(self, input, hx)
        spec = capture(self)
        weights = weights_of(self)
        prepared = prepare(spec, weights[0], input, hx)
        check_weights(spec, self._flat_weights_names, weights)
        h0 = initial_state(spec, prepared)
        problem = problem_of(prepared, h0, weights)
        special = special_context(prepared.x, h0, *weights)
        if special is None:
            backend = self._backend_for(spec, problem)
        elif special.startswith("autocast"):
            return _eager_forward(self, input, hx)
        else:
            backend = _REFERENCE
        y, h_n = run_stack(
            backend, spec, prepared.rows, prepared.x, h0, weights, self.training, problem.needs_grad
        )
        if special is None and not profiled and not isinstance(input, PackedSequence):
            self._remember(backend, spec, problem, input, h0, weights)
        return restore(spec, prepared, y, h_n)

    def _remember(
        self,
        backend: Backend,
        spec: RNNSpec,
        problem: Problem,
        x: Tensor,
        h0: Tensor,
        weights: tuple[Tensor, ...],
    ) -> None:
        """Keep a short way for the next call like this one, if there is one."""
        run = shortcut(backend, spec, problem, self.training, x, h0, weights)
        if run is None:
            return
        if len(self._routes) >= _CHOICES_KEPT:
            self._routes.clear()
        route = Route(run, self._flat_weights_names, x, h0, weights)
        others = self._routes.get(x.shape, ())
        self._routes[x.shape] = (route, *others[: _KINDS_KEPT - 1])

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _CONFIGURATION:
            self.__dict__["_routes"] = {}

    def _traced(self, x: Tensor | PackedSequence, hx: Tensor | None) -> _Result:
        """What torch.compile and torch.export trace: one operator for each layer.

        It is `forward` without the caches, through which nothing could be traced. Packed input
        breaks the graph: how many rows a step has is not known while tracing.
        """
        # Here, since torch.library brings the whole of torch's compiler with it.
        from rnnjit.ops import TracedBackend, untraced

        if isinstance(x, PackedSequence):
            result: _Result = untraced(self.forward, x, hx)
            return result
        weights = tuple([getattr(self, name) for name in self._flat_weights_names])
        if torch.is_autocast_enabled(weights[0].device.type):
            return _eager_forward(self, x, hx)
        spec = RNNSpec(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            NONLINEARITY[self.mode],
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
        )
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

    def _backend_for(self, spec: RNNSpec, problem: Problem) -> Backend:
        if self._choices_spec is not spec:
            self._choices_spec, self._choices = spec, {}
        chosen = self._choices.get(problem)
        if chosen is None:
            chosen = choose(spec, problem, resolve(self._backend))
            if len(self._choices) >= _CHOICES_KEPT:
                self._choices.clear()
            self._choices[problem] = chosen
        return chosen

    def _get_name(self) -> str:
        return type(self).__name__.replace("CompiledRNN", "RNN")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # torch has no types here
        return {**state, "_choices": {}, "_choices_spec": None, "_routes": {}}

    def __setstate__(self, d: dict[str, Any]) -> None:
        super().__setstate__(d)  # type: ignore[no-untyped-call]  # torch has no types here
        self._key = key_of(self._backend)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        # A class made by `compiled_class` cannot be found by its name, but its source can.
        return _empty, (self._source_class,), self.__getstate__()


def _empty(source: type[nn.Module]) -> CompiledRNN:
    cls = compiled_class(source)
    return cls.__new__(cls)


def compiled_class(source: type[nn.Module]) -> type[CompiledRNN]:
    """The class that a compiled instance of `source` has: `source` with CompiledRNN for nn.RNN.

    A subclass of nn.RNN (or a parametrized one) is built again over CompiledRNN, so that its
    methods, properties and overrides go on working on an object that is no nn.RNN.
    """
    if source is nn.RNN:
        return CompiledRNN
    if issubclass(source, CompiledRNN):
        return source
    key: Any = source
    return _rebuild(key, tuple(vars(source)))


@lru_cache(maxsize=256)
def _rebuild(source: Any, names: tuple[str, ...]) -> type[CompiledRNN]:
    """`source` over CompiledRNN; `names` are its attributes, which parametrizing adds to."""
    bases = tuple(
        compiled_class(base) if issubclass(base, nn.RNN) else base for base in source.__bases__
    )
    own_class = CellType()
    namespace = {
        name: _rebind(value, own_class)
        for name, value in ((name, vars(source)[name]) for name in names)
        if name not in ("__dict__", "__weakref__")
    }
    namespace["_source_class"] = source
    metaclass: Any = type(source)
    rebuilt: type[CompiledRNN] = metaclass(source.__name__, bases, namespace)
    own_class.cell_contents = rebuilt
    return rebuilt


def _rebind(value: Any, own_class: CellType) -> Any:
    """A class attribute whose zero-argument `super()` starts from another class."""
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_rebind(value.__func__, own_class))
    if isinstance(value, property):
        get, put, delete = (_rebind(f, own_class) for f in (value.fget, value.fset, value.fdel))
        return property(get, put, delete, value.__doc__)
    if not isinstance(value, FunctionType) or "__class__" not in value.__code__.co_freevars:
        return value
    closure = tuple(
        own_class if name == "__class__" else cell
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    )
    rebound = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
    )
    rebound.__kwdefaults__ = value.__kwdefaults__
    rebound.__dict__.update(value.__dict__)
    rebound.__doc__ = value.__doc__
    rebound.__qualname__ = value.__qualname__
    return rebound


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
