"""The class of a module whose own loop `rnnjit.compile` has replaced, see `rnnjit.adapt`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend, States
from rnnjit.cells import trace_cell
from rnnjit.cells.guards import Guards
from rnnjit.cells.tracing import state_key
from rnnjit.dispatch.choice import special_context
from rnnjit.dispatch.fallback import GENERATION, Fallback
from rnnjit.dispatch.registry import resolve
from rnnjit.frontend.adapt import OUTPUT, Adaptation, X
from rnnjit.frontend.arguments import initial_states, prepare
from rnnjit.frontend.compiled_base import Choices, choice_for
from rnnjit.frontend.lowering import needs_grad
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.recurrent import outer_spec, restored
from rnnjit.frontend.recurrent_layers import run_layers
from rnnjit.frontend.recurrent_lowering import LayerCall, notes_on
from rnnjit.frontend.recurrent_plan import Plan, layer_plan
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.torch_private import never_traced
from rnnjit.spec import Problem, RNNSpec

#: The steps of the first call that are compared with the original loop.
_CHECKED = 3


class Dispatch:
    """What `compile` got for an adapted module, and what follows from it.

    It is one object, since attributes of the module are part of what is traced.

    Args:
        backend: as in `compile`.
        recompute: as in `compile`.
    """

    def __init__(self, backend: str | Backend, recompute: bool) -> None:
        self.backend, self.recompute = backend, recompute
        self.checked: set[tuple[object, ...]] = set()
        #: What the step computes, with what that depends on.
        self.plan: tuple[tuple[object, ...], Guards, Plan] | None = None
        self._choices: Choices = {}
        self._generation = GENERATION.now

    def choose(self, spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
        """The backend of a layer, and the fallback if it raises."""
        if self._generation != GENERATION.now:
            self._choices, self._generation = {}, GENERATION.now
        return choice_for(spec, problem, self.backend, self._choices, recompute=self.recompute)

    def __deepcopy__(self, memo: object) -> Dispatch:
        return Dispatch(self.backend, self.recompute)

    def __reduce__(self) -> tuple[object, ...]:
        return Dispatch, (self.backend, self.recompute)


class Adapted(nn.Module):
    """Comes before the user's class in the class of an adapted module."""

    _adaptation: Adaptation
    _source: type[nn.Module]
    _dispatch: Dispatch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's `forward`, by compiled code.

        Calls with other arguments than x and a state, with x that is not 3-D, and those that torch
        transforms run the original loop.

        Raises:
            CellError: the step computes what no backend could.
            ValueError: the original loop gives other results than the compiled one.
            UnsupportedError: the backend that the user named declines the call.
        """
        if torch.compiler.is_compiling():
            return self._source.forward(self, *args, **kwargs)
        return self._run(*args, **kwargs)

    @never_traced
    def _run(self, *args: Any, **kwargs: Any) -> Any:
        found = self._taken(args, kwargs)
        if found is None:
            return self._source.forward(self, *args, **kwargs)
        x, hx = found
        key = hx is None, self.training, x.dtype, x.device.type
        if key not in self._dispatch.checked:
            self._check(x, hx)
            self._dispatch.checked.add(key)
        return self._compiled(x, hx)

    def _taken(self, args: Any, kwargs: Any) -> tuple[Tensor, States | None] | None:
        """The input and the states of a call, or None if the original loop has to run it."""
        if resolve(self._dispatch.backend) is EAGER:
            return None
        bound = inspect.signature(self._source.forward).bind(self, *args, **kwargs)
        _, x, *others = bound.arguments.values()
        hx = others[0] if others else None
        states = (hx,) if isinstance(hx, Tensor) else hx
        if len(others) > 1 or not isinstance(x, Tensor) or x.dim() != 3 or 0 in x.shape[:2]:
            return None
        if not x.is_floating_point() or x.is_meta:
            return None
        if states is not None:
            count = len(self._adaptation.states)
            if not isinstance(states, (tuple, list)) or len(states) != count:
                return None
            batch = x.shape[not self._adaptation.batch_first]
            shape = batch, self._adaptation.sizes(self)[1]
            if not all(isinstance(each, Tensor) and each.shape == shape for each in states):
                return None
            states = tuple(states)
        own = (*self.parameters(), *self.buffers())
        if overriding(self, x, states) or special_context(x, *(states or ()), *own):
            return None
        return x, states

    def _adapted_step(self, x: Tensor, *states: Tensor) -> Any:
        """The user's step with x first, whose results are the output and then the states."""
        how = self._adaptation
        given = {X: x, **dict(zip(how.states, states, strict=True))}
        found = getattr(self, how.step)(
            *[
                given[name] if isinstance(name, str) else tuple([given[each] for each in name])
                for name in how.arguments
            ]
        )
        tensors = _flat(found, f"{how.step} must return")
        if len(tensors) != len(how.results):
            raise ValueError(
                f"it returns {len(tensors)} tensors, and the results of rnnjit.adapt are "
                f"{how.results}"
            )
        named = dict(zip(how.results, tensors, strict=True))
        output = named[OUTPUT] if OUTPUT in named else named[how.results[0]]
        return (output, *[named[name] for name in how.states])

    def _plan(self, weight: Tensor) -> tuple[Plan, RNNSpec]:
        """What the step computes, and the configuration of the call; `weight` has its dtype."""
        how, held = self._adaptation, self._dispatch.plan
        I, H = how.sizes(self)
        key = I, H, weight.dtype, weight.device, *state_key(self)
        if held is None or held[0] != key or not held[1]():
            traced = trace_cell(
                *(self, "_adapted_step"),
                input_size=I,
                hidden_size=H,
                states=how.states,
                dtype=weight.dtype,
                device=weight.device,
                method=how.step,
            )
            guards, plan = Guards([self], how.step), Plan((layer_plan(H, (traced,)),), None)
            held = self._dispatch.plan = key, guards, plan
        outer = outer_spec(I, H, 1, 1, how.states, type(self).__name__, how.batch_first, 0.0, False)
        return held[2], outer

    def _weight(self, x: Tensor) -> Tensor:
        """A parameter, whose dtype and device are the call's; x itself if there is none."""
        floating = (each for each in self.parameters() if each.is_floating_point())
        return next(floating, x.new_empty(0))

    def _lowered(self, x: Tensor, hx: States | None) -> LayerCall:
        """What backends are asked to compute of a call that is compiled.

        Raises:
            CellError: the step computes what no backend could.
        """
        plan, outer = self._plan(self._weight(x))
        (layer,) = plan.layers
        (B, T) = x.shape[:2] if outer.batch_first else (x.shape[1], x.shape[0])
        recorded = needs_grad(x, hx or (), (*self.parameters(), *self.buffers()))
        problem = Problem(
            *(x.dtype, x.device.type, T, B, T * B, False, recorded, x.get_device()),
        )
        return LayerCall(None, layer.spec, problem, layer.form.output != 0, notes_on(layer))

    def _compiled(self, x: Tensor, hx: States | None) -> Any:
        states = hx and tuple([state.unsqueeze(0) for state in hx])
        given: Any = states[0] if states and len(states) == 1 else states
        weight = self._weight(x)
        plan, outer = self._plan(weight)
        prepared = prepare(outer, weight, x, given)
        found = run_layers(
            *(plan, (self,), prepared.rows, prepared.x, initial_states(outer, prepared)),
            *(0.0, self._dispatch.choose),
        )
        y, _ = cast("tuple[Any, Any]", restored(outer, prepared, found.y, found.h_n, None))
        last = tuple([state.squeeze(0) for state in found.h_n])
        named = {OUTPUT: y, "states": last[0] if len(last) == 1 else last}
        results = tuple([named[name] for name in self._adaptation.returns])
        return results if len(results) > 1 else results[0]

    def _check(self, x: Tensor, hx: States | None) -> None:
        """Compare the first steps with the original loop.

        Raises:
            ValueError: values or gradients differ.
        """
        time = int(self._adaptation.batch_first)
        few = x.detach().narrow(time, 0, min(x.shape[time], _CHECKED))
        single = len(self._adaptation.states) == 1
        wanted = self._source.forward
        modes = torch.inference_mode(False), torch.enable_grad()
        with modes[0], modes[1]:
            with _drawing_again(self, x.device):
                expected = self._outcome(
                    lambda x, hx: wanted(
                        self, x, *(() if hx is None else (hx[0] if single else hx,))
                    ),
                    few,
                    hx,
                )
            with _drawing_again(self, x.device):
                found = self._outcome(self._compiled, few, hx)
        _compare(self, found, expected)

    def _outcome(self, run: Any, x: Tensor, hx: States | None) -> list[Tensor]:
        """The results of a call and the gradients of its inputs and the parameters."""
        x = x.clone().requires_grad_()
        hx = hx and tuple([state.detach().clone().requires_grad_() for state in hx])
        results = list(_flat(run(x, hx), "forward must return"))
        # Weights that differ between elements, so that transposed results are noticed.
        total = sum(
            (
                each
                * torch.linspace(0.5, 1.5, each.numel(), dtype=each.dtype, device=each.device).view(
                    each.shape
                )
            ).sum()
            for each in results
        )
        leaves = [x, *(hx or ()), *[each for each in self.parameters() if each.requires_grad]]
        grads = torch.autograd.grad(cast("Tensor", total), leaves, allow_unused=True)
        pairs = zip(grads, leaves, strict=True)
        return [*results, *[torch.zeros_like(of) if grad is None else grad for grad, of in pairs]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle by the class of the original: pickle does not find a class that was made here."""
        getstate: Any = getattr(self, "__getstate__", None)
        state = getstate() if getstate is not None else dict(vars(self))
        return empty_adapted, (self._source, self._adaptation), state


@contextmanager
def _drawing_again(module: nn.Module, device: torch.device) -> Iterator[None]:
    """What is drawn inside is drawn again outside: by torch's generators, and by the module's."""
    held = (each for part in module.modules() for each in vars(part).values())
    own = [(each, each.get_state()) for each in held if isinstance(each, torch.Generator)]
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            yield
        finally:
            for generator, state in own:
                generator.set_state(state)


def _flat(result: Any, what: str) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if not isinstance(result, (tuple, list)):
        raise ValueError(f"{what} tensors, got {type(result).__name__}")
    return [each for part in result for each in _flat(part, what)]


def _compare(module: Adapted, found: list[Tensor], expected: list[Tensor]) -> None:
    name = module._source.__name__
    head = (
        f"{name}.forward is not the loop over {name}.{module._adaptation.step} that rnnjit.adapt "
        "describes:"
    )
    advice = (
        "Check arguments, results, returns and batch_first of rnnjit.adapt; what else forward "
        f"computes belongs outside of it, or leave {name} out of `cells`"
    )
    shapes = [[list(each.shape) for each in part] for part in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{head} its results and gradients have the shapes {shapes[1]}, those of the compiled "
            f"loop {shapes[0]}. {advice}"
        )
    for own, theirs in zip(found, expected, strict=True):
        bound = torch.finfo(theirs.dtype).eps ** 0.5
        own, theirs = own.detach(), theirs.detach()
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        if not torch.allclose(own, theirs, rtol=bound, atol=bound * scale, equal_nan=True):
            off = float((own - theirs).abs().max())
            raise ValueError(
                f"{head} in its first {_CHECKED} steps a result or gradient of shape "
                f"{list(theirs.shape)} differs by {off:.3g}. {advice}"
            )


@cache
def adapted_class(source: Any, how: Adaptation) -> type[Adapted]:
    """The class of adapted instances of a user's class."""
    namespace = {
        "__module__": source.__module__,
        "__qualname__": source.__qualname__,
        "__doc__": source.__doc__,
        "_adaptation": how,
        "_source": source,
    }
    metaclass: Any = type(source)
    made: Any = metaclass(source.__name__, (Adapted, source), namespace)
    return cast("type[Adapted]", made)


def empty_adapted(source: type[nn.Module], how: Adaptation) -> nn.Module:
    """An empty instance of `adapted_class`, for unpickling and copying."""
    cls: Any = adapted_class(cast("Any", source), how)
    made: nn.Module = object.__new__(cls)  # a `__new__` of the user's may need arguments
    return made


def source_of(module: nn.Module) -> type[nn.Module]:
    """The user's class of a module, adapted or not."""
    return module._source if isinstance(module, Adapted) else type(module)


def become_adapted(
    module: nn.Module,
    state: dict[str, Any],
    how: Adaptation,
    backend: str | Backend,
    recompute: bool,
) -> None:
    """Give a module its adapted class, the attributes in `state`, and what `compile` got."""
    cls: Any = adapted_class(cast("Any", source_of(module)), how)
    module.__class__ = cls
    module.__dict__ = state
    state["_dispatch"] = Dispatch(backend, recompute)
