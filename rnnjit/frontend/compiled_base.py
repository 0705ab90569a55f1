"""What compiled modules have in common: the choice of a backend for a call, and its cache."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend, Shortcut, States
from rnnjit.dispatch.choice import AUTOCAST, choose_for_sizes, fallback_for, kind_of
from rnnjit.dispatch.fallback import GENERATION, RAISE, Fallback
from rnnjit.dispatch.fast_path import FastPath
from rnnjit.dispatch.packed_path import PackedPath, PackedRun, may_be_guarded
from rnnjit.dispatch.registry import key_of, resolve
from rnnjit.errors import UnsupportedError
from rnnjit.execution.fast_call import fast_call, packed_call
from rnnjit.execution.recompute import RecomputingFallback, recomputing
from rnnjit.execution.stack import run_stack
from rnnjit.frontend.arguments import Result, StateDtypeError, as_hx, as_states
from rnnjit.frontend.autocast import (
    WithoutAutocast,
    cast_around,
    cast_call,
    may_use_onednn,
    problem_under_autocast,
    result_dtypes,
)
from rnnjit.frontend.capture import weight_names
from rnnjit.frontend.compiled_class import HasSourceClass
from rnnjit.frontend.lowering import Call, lower_sequence
from rnnjit.frontend.overrides import fx_node, overriding, scriptable, warn_unquantized
from rnnjit.frontend.torch_errors import REFUSALS, promoted, refusal
from rnnjit.frontend.traced import run_dense
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import (
    LAYER_INTERNALS,
    flat_weights_assigned,
    never_traced,
    parameters_of,
    profiler_runs,
    scripting,
    tensors_of,
)
from rnnjit.spec import Problem, RNNSpec

_CHOICES_KEPT = 512
#: Fast paths kept for one shape of input: with and without gradients, for example.
_KINDS_KEPT = 4
#: Attributes whose assignment invalidates the cached fast paths.
_CONFIGURATION = frozenset({*RNNSpec.__dataclass_fields__, "mode", "nonlinearity", "training"})
_REFERENCE = ReferenceBackend()
#: The backends and fallbacks of calls, by what the choice depends on.
Choices = dict[tuple[Hashable, ...], tuple[Backend, Fallback]]
#: The fast paths of a module by the shape of the input, or its class if it is packed.
FastPaths = dict[Hashable, tuple[FastPath | PackedPath, ...]]
#: The classes of inputs that they take.
_GUARDED = frozenset({Tensor, PackedSequence})


class CompiledBase(HasSourceClass):
    """A mixin for compiled modules; their other base is torch's own class, or that class's base.

    Attributes:
        _weights_assigned: whether torch would use other weights than the module's parameters, or
            something else that was assigned, so that torch's own layer runs.
        _quantized: whether the matrices are int8, see `rnnjit.quantize`.
    """

    _weights_assigned = False
    _recompute = False
    _quantized = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Construct the module of torch and compile it for "auto"; for `type(fast)(...)`."""
        own: Any = self._torch_class
        if args and isinstance(args[0], nn.Module):
            raise TypeError(
                f"{type(self).__name__} takes the arguments of nn.{own.__name__}, got a module: "
                "call rnnjit.compile(module)"
            )
        own.__init__(self, *args, **kwargs)
        self.backend = "auto"

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

    @property
    def recompute(self) -> bool:
        """The `recompute` argument of `compile`; assignment takes effect at the next call.

        Raises:
            TypeError: (assigning) it is not a bool.
        """
        return self._recompute

    @recompute.setter
    def recompute(self, recompute: bool) -> None:
        check_recompute(recompute)
        self._recompute = recompute
        self._forget_choices()

    def _forget_choices(self) -> None:
        """Drop the cached choices: the next call chooses again."""
        generation = GENERATION.now
        self._choices: Choices = {}
        self._fast_paths: FastPaths = {}
        self._generation = generation

    @never_traced
    def _call(self, x: Any, hx: Any, given: tuple[Any, Any] | None = None) -> Result | None:
        """The result of a call in a layer's form, or None if torch's own layer has to run it.

        Other threads may call too, or change the configuration or the backend at the same time. A
        change replaces the dictionaries that hold the cached choices. A call stores its choice in
        the dictionaries that it read at the start, so that an outdated choice is never used.

        Args:
            x: the input in the form of a layer's.
            hx: the initial state in the form of a layer's.
            given: the arguments as the caller gave them, where these differ.
        """
        if FORK.forked and needs_one_thread():
            with one_thread():
                return self._call(x, hx, given)
        if self._generation != GENERATION.now:
            self._forget_choices()
        # No fast path under a profiler: it may run a whole stack in one call, without layer ranges.
        profiled, paths, choices = profiler_runs(), self._fast_paths, self._choices
        if type(x) in _GUARDED and not profiled:
            found = self._by_fast_path(paths, x, hx)
            if found is not None:
                return found
        if scripting() or self._weights_assigned or overriding(self, x, hx):
            return None
        training = getattr(self, "training", False)  # torch's cells do without it
        call = self._checked(*(given or (x, hx)))
        if isinstance(call, StateDtypeError) and not self._quantized:
            return cast("Result", promoted(call, self, *(given or (x, hx))))
        if isinstance(call, Exception):
            raise refusal(call, self, *(given or (x, hx)))
        if call.special == AUTOCAST:
            return self._under_autocast(call, choices, paths, x, profiled, training)
        if call.special is not None:
            return self._run(call, _REFERENCE, RAISE, training)
        backend, fallback = self._choice(call, choices)
        if profiled:
            return self._run(call, backend, fallback, training)
        if isinstance(x, PackedSequence):
            result = self._run(call, backend, fallback, training)
            if kind_of(call.spec, call.problem) in choices:  # whatever its sizes
                packed = packed_call(backend, call.spec, call.problem, training, fallback)
                self._remember_packed(paths, packed, call, x, hx)
            return result
        if given is not None:
            found = self._call_as_given(call, backend, fallback, paths, *given)
            if found is not None:
                return found
        run = fast_call(
            *(backend, call.spec, call.problem, training, x, call.hx, call.weights, fallback)
        )
        if run is None:
            return self._run(call, backend, fallback, training)
        # The first call, too: what autograd saves must not differ between equal calls, since
        # checkpointing compares it.
        y, h_n = run(x, call.hx, call.weights)
        remember(paths, self._fast_path(run, x, call.hx, call.weights), x.shape)
        return y, as_hx(h_n)

    def _fast_path(
        self, run: Shortcut, x: Tensor, hx: States, weights: tuple[Tensor, ...]
    ) -> FastPath:
        held = tensors_of if self._quantized else parameters_of
        return FastPath(run, weight_names(self), x, hx, weights, held)

    def _remember_packed(
        self, paths: FastPaths, run: PackedRun, call: Call, x: PackedSequence, hx: Any
    ) -> None:
        """Keep a fast path for packed calls like this one, if there may be one."""
        given = as_states(call.spec, hx, indexed=x.sorted_indices is not None)
        if may_be_guarded(x, given, call.rows):
            held = tensors_of if self._quantized else parameters_of
            path = PackedPath(run, weight_names(self), x, call.hx, given, call.weights, held)
            remember(paths, path, PackedSequence)

    def _under_autocast(
        self,
        call: Call,
        choices: Choices,
        paths: FastPaths,
        x: Any,
        profiled: bool,
        training: bool,
    ) -> Result | None:
        """The result of a call by a backend that computes in autocast's dtype, or None.

        None where the backend that is chosen or named does not run such calls.
        """
        problem = problem_under_autocast(call)
        if problem is None:
            return None
        try:
            backend, fallback = self._choice_for(call.spec, problem, choices)
        except UnsupportedError:
            return None
        if not backend.under_autocast:
            return None
        results, cast = result_dtypes(self._torch_class, call), cast_call(call, problem)
        run = None
        if not (profiled or isinstance(x, PackedSequence)):
            run = fast_call(
                *(backend, call.spec, problem, training, x.to(problem.dtype), cast.hx),
                *(cast.weights, fallback),
            )
        if run is None:
            with WithoutAutocast(problem.device):
                y, h_n = run_stack(
                    *(backend, call.spec, call.rows, cast.x, cast.hx, cast.weights, training),
                    *(problem.needs_grad, fallback),
                )
            return call.restore(*results(may_use_onednn()).cast(y, h_n))
        run = cast_around(run, problem, results)
        y, h_n = run(x, call.hx, call.weights)
        remember(paths, FastPath(run, weight_names(self), x, call.hx, call.weights), x.shape)
        return y, as_hx(h_n)

    def _call_as_given(
        self, call: Call, backend: Backend, fallback: Fallback, paths: FastPaths, x: Any, hx: Any
    ) -> Result | None:
        """The result of a call by a fast path for arguments that differ from a layer's.

        It is in their form; None if there is no such path.
        """
        return None

    def _lowered(self, x: Any, hx: Any) -> Call:
        """`_lower`, whose errors get the types and the words of torch."""
        call = self._checked(x, hx)
        if isinstance(call, Exception):
            raise refusal(call, self, x, hx)
        return call

    def _checked(self, x: Any, hx: Any) -> Call | Exception:
        """What `_lower` returns or raises; neither our checks nor torch's get into a traceback."""
        try:
            return self._lower(x, hx)
        except REFUSALS as error:
            return error

    def _lower(self, x: Any, hx: Any) -> Call:
        """Lower a call with the arguments that the caller gave."""
        return lower_sequence(self, x, hx)

    def _run(self, call: Call, backend: Backend, fallback: Fallback, training: bool) -> Result:
        """Run a lowered call layer by layer."""
        y, h_n = run_stack(
            *(backend, call.spec, call.rows, call.x, call.hx, call.weights, training),
            *(call.problem.needs_grad, fallback),
        )
        return call.restore(y, h_n)

    def _eager_forward(self, x: Any, hx: Any) -> Any:
        """Torch's own forward pass, for calls in which torch itself transforms the layer."""
        node = fx_node(self, x, hx)
        if node is not None:
            return node
        if self._quantized:
            return self._by_reference(x, hx)
        own: Any = self._torch_class
        return own.forward(self, x, hx)

    def _by_reference(self, x: Any, hx: Any) -> Any:
        """The result of a call by torch's operators, in the form of `forward`'s.

        Raises:
            RuntimeError: something was assigned that only torch's own layer would use.
        """
        if self._weights_assigned:
            raise RuntimeError(
                "a quantized module runs on its own buffers, but what torch's forward uses was "
                "assigned: copy the values into the buffers"
            )
        call = self._lowered(x, hx)
        return self._run(call, _REFERENCE, RAISE, getattr(self, "training", False))

    def _by_fast_path(self, paths: FastPaths, x: Any, hx: Any) -> Result | None:
        """The result of a call that matches a cached fast path, or None if none matches."""
        try:
            known = paths.get(PackedSequence if type(x) is PackedSequence else x.shape)
        except RuntimeError:  # a nested tensor, which has no shape
            return None
        if known is None:
            return None
        for path in known:
            if (found := path(self, x, hx)) is not None:
                y, h_n = found
                return y, as_hx(h_n)
        return None

    def _traced_call(self, spec: RNNSpec, x: Tensor, hx: Any) -> Result | None:
        """What torch.compile and torch.export trace of a call with dense input."""
        weights = tuple([getattr(self, name) for name in weight_names(self)])
        return run_dense(spec, weights, self._key, getattr(self, "training", False), x, hx)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig":
            warn_unquantized(self._torch_class)
        if name in LAYER_INTERNALS:
            self.__dict__["_weights_assigned"] = True
        elif name == "_flat_weights":
            self.__dict__["_weights_assigned"] = flat_weights_assigned(self)
        elif name not in _CONFIGURATION and not (isinstance(value, Tensor) and value.is_nested):
            return
        self.__dict__["_fast_paths"] = {}

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__["_fast_paths"] = {}

    def _get_name(self) -> str:
        own = self._torch_class.__name__
        name = type(self).__name__.replace(f"Compiled{own}", own)
        return f"Quantized{name}" if self._quantized else name

    def _choice(self, call: Call, choices: Choices) -> tuple[Backend, Fallback]:
        return self._choice_for(call.spec, call.problem, choices)

    def _choice_for(
        self, spec: RNNSpec, problem: Problem, choices: Choices
    ) -> tuple[Backend, Fallback]:
        """The backend of a call, and the fallback if it raises; remembered in `choices`."""
        return choice_for(spec, problem, self._backend, choices, recompute=self._recompute)

    def __getstate__(self) -> dict[str, Any]:
        parent: Any = super()
        # nn.Module has no __getstate__ of its own before Python 3.11.
        state = parent.__getstate__() if hasattr(parent, "__getstate__") else self.__dict__
        return {**state, "_choices": {}, "_fast_paths": {}}

    def __setstate__(self, d: dict[str, Any]) -> None:
        super().__setstate__(d)  # type: ignore[no-untyped-call]  # torch has no types here
        self.backend = d.get("_backend", "auto")

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles instead: the module of torch, with these Parameters."""
        if self._quantized:
            raise TypeError(
                "torch.jit.script cannot compile a quantized module: script the module that was "
                "quantized, or use torch.export"
            )
        return scriptable(self, self._source_class)


def choice_for(
    spec: RNNSpec, problem: Problem, named: str | Backend, choices: Choices, *, recompute: bool
) -> tuple[Backend, Fallback]:
    """The backend of a call, and the fallback if it raises; remembered in `choices`.

    Args:
        spec: the stack or the layer.
        problem: the properties of the call.
        named: the backend that the user named, as in `compile`.
        choices: those that are known.
        recompute: as in `compile`.

    Raises:
        UnsupportedError: the backend that the user named declines.
    """
    kind = kind_of(spec, problem)
    found = choices.get(kind) or choices.get((kind, problem))
    if found is None:
        wanted = resolve(named)
        backend, sizes_matter = choose_for_sizes(spec, problem, wanted)
        found = backend, fallback_for(spec, problem, wanted)
        if recompute:
            policy = RecomputingFallback(found[1], spec, problem)
            found = recomputing(backend, spec, problem), policy
        if len(choices) >= _CHOICES_KEPT:
            choices.clear()
        choices[(kind, problem) if sizes_matter else kind] = found
    return found


def check_recompute(recompute: Any) -> None:
    """Check the `recompute` argument of `compile`.

    Raises:
        TypeError: it is not a bool.
    """
    if not isinstance(recompute, bool):
        raise TypeError(f"recompute must be True or False, got {type(recompute).__name__}")


def remember(paths: FastPaths, path: FastPath | PackedPath, shape: Hashable) -> None:
    """Keep a fast path for the next call with input of this shape, or class if it is packed."""
    if len(paths) >= _CHOICES_KEPT:
        paths.clear()
    others = paths.get(shape, ())
    paths[shape] = (path, *others[: _KINDS_KEPT - 1])
