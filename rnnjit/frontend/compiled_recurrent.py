"""The module that replaces a `Recurrent` and shares its Parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend, Shortcut, States
from rnnjit.cells.guards import Guards
from rnnjit.cells.tracing import tensors_key
from rnnjit.dispatch.choice import special_context
from rnnjit.dispatch.fallback import GENERATION, Fallback
from rnnjit.dispatch.fast_path import FastPath
from rnnjit.dispatch.registry import resolve
from rnnjit.execution.fast_call import fast_call
from rnnjit.execution.stack import run_stack
from rnnjit.frontend.arguments import (
    Prepared,
    as_hx,
    initial_states,
    prepare,
)
from rnnjit.frontend.capture import is_quantized
from rnnjit.frontend.compiled_base import CompiledBase, FastPaths, remember
from rnnjit.frontend.compiled_class import stands_for
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.quantized_calls import apart, must_be_apart
from rnnjit.frontend.recurrent import Recurrent, restored
from rnnjit.frontend.recurrent_layers import run_layers
from rnnjit.frontend.recurrent_lowering import as_stack, stack_call
from rnnjit.frontend.recurrent_plan import (
    Plan,
    Stack,
    initial,
    make_plan,
    untraceable,
)
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import never_traced, profiler_runs, scripting
from rnnjit.spec import Problem, RNNSpec

#: What the cells compute, by what that depends on beside their attributes.
Plans = dict[tuple[Any, ...], Plan]
#: Plans of a module are dropped when there are more.
_PLANS_KEPT = 64


@stands_for(Recurrent)
class CompiledRecurrent(CompiledBase, Recurrent):
    """A `Recurrent` whose layers run on rnnjit's backends.

    Made by `rnnjit.compile`, never directly. It has the Parameters, the `state_dict`, the hooks and
    the `repr` of the module that it was made from. With backend="eager", and where torch itself
    transforms a call (see `rnnjit.explain`), the user's `forward` runs step by step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Construct a `Recurrent` and compile it for "auto"; for `type(fast)(...)`."""
        Recurrent.__init__(self, *args, **kwargs)
        self.backend = "auto"

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.RNN's own name
        hx: Any = None,
        reset: Tensor | None = None,
        reset_to: Any = None,
        return_states: bool = False,
    ) -> Any:
        """Run the layers; arguments, results and exceptions are those of `Recurrent.forward`.

        Raises:
            CellError: the cell computes what no backend could, since an attribute or the mode
                (training or not) has changed.
            UnsupportedError: the backend that the user named declines the call.
            BackendError: a backend broke its contract, and no other may run the call.
        """
        if self._quantized and must_be_apart(input):
            options: Any = (reset, reset_to, return_states)
            return apart(lambda x, hx: self.forward(x, hx, *options), input, hx)
        if torch.compiler.is_compiling():
            return _outside_of_graphs(self, input, hx, reset, reset_to, return_states)
        return self._compiled(input, hx, reset, reset_to, return_states)

    @never_traced
    def _compiled(self, x: Any, hx: Any, reset: Any, reset_to: Any, return_states: Any) -> Any:
        """A call outside of graphs."""
        if FORK.forked and needs_one_thread():
            with one_thread():
                return self._compiled(x, hx, reset, reset_to, return_states)
        if self._generation != GENERATION.now or not self._guards():
            self._forget_choices()
        plain = reset is None and reset_to is None and not return_states
        profiled, paths = profiler_runs(), self._fast_paths
        if plain and type(x) is Tensor and not profiled:
            found = self._by_fast_path(paths, x, hx)
            if found is not None:
                return found
        if self._loops(x, hx):
            return Recurrent.forward(self, x, hx, reset, reset_to, return_states)
        outer, weight = self._outer_spec(), self._first_weight()
        prepared = prepare(outer, weight, x, hx)
        states = initial_states(outer, prepared)
        if untraceable(weight):
            return Recurrent.forward(self, x, hx, reset, reset_to, return_states)
        if special_context(prepared.x, *states, *self._tensors()) is not None:
            return Recurrent.forward(self, x, hx, reset, reset_to, return_states)
        plan = self._plan(weight)
        if plain and plan.stack is not None and as_stack(self, plan, prepared, states):
            return self._run_stack(plan, plan.stack, prepared, states, x, paths, profiled)
        cuts = self._checked_resets(outer, x, reset, reset_to)
        result = run_layers(
            *(plan, self._store.bind(self), prepared.rows, prepared.x, states),
            *(self.dropout if self.training else 0.0, partial(self._choose, self._choices), cuts),
            every=return_states,
        )
        return restored(
            outer, prepared, result.y, result.h_n, result.states if return_states else None
        )

    def _loops(self, x: Any, hx: Any) -> bool:
        """Whether the user's own `forward` runs the call, step by step."""
        return resolve(self._backend) is EAGER or scripting() or bool(overriding(self, x, hx))

    def _forget_choices(self) -> None:
        super()._forget_choices()
        if not (guards := self.__dict__.get("_guards")) or not guards():
            self._guards = Guards(self._store.cells)
            if "_plans" not in self.__dict__ or len(self._plans) > _PLANS_KEPT:
                self._plans: Plans = {}

    def _plan(self, weight: Tensor) -> Plan:
        """What the cells compute, in the module's mode, dtype and type of device.

        Raises:
            CellError: a cell computes what no backend could.
        """
        key, plans = self._plan_key(weight), self._plans
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = make_plan(self, self._store)
        return plan

    def _plan_key(self, weight: Tensor) -> tuple[Any, ...]:
        return (*_key_of(self, weight), self._guards.key)

    def _choose(self, choices: Any, spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
        return self._choice_for(spec, problem, choices)

    def _run_stack(
        self,
        plan: Plan,
        stack: Stack,
        prepared: Prepared,
        states: States,
        x: Any,
        paths: FastPaths,
        profiled: bool,
    ) -> Any:
        """A call of layers that form a stack, as one of an nn.LSTM."""
        call = stack_call(self, plan, stack, prepared, states)
        spec, problem, weights, training = call.spec, call.problem, call.weights, self.training
        backend, fallback = self._choice_for(spec, problem, self._choices)
        run = None
        if prepared.packed is None and not profiled:
            run = fast_call(*(backend, spec, problem, training, x, call.hx, weights, fallback))
        if run is None:
            y, h_n = run_stack(
                *(backend, spec, prepared.rows, prepared.x, call.hx, weights, training),
                *(problem.needs_grad, fallback),
            )
            h_n = tuple([h_n[place] for place in stack.form.states])
            return restored(self._outer_spec(), prepared, y, h_n, None)
        run = _with_own_states(run, stack)
        # The first call, too: what autograd saves must not differ between equal calls, since
        # checkpointing compares it.
        y, h_n = run(x, states, weights)
        path = FastPath(run, list(stack.names or ("",)), x, states, weights)
        if stack.names is None:
            key = self._plan_key(self._first_weight())
            path.weights_of = partial(_computed_weights, self, plan, key)
        remember(paths, path, x.shape)
        return y, as_hx(h_n)

    def __getstate__(self) -> dict[str, Any]:
        # The plans hold code of the cells, and the guards their attributes.
        return {k: v for k, v in super().__getstate__().items() if k not in ("_plans", "_guards")}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_store":
            self.__dict__.pop("_guards", None)


def _key_of(module: Recurrent, weight: Tensor) -> tuple[Any, ...]:
    """What a plan depends on, beside the attributes of the cells."""
    kind = weight.dtype, weight.device.type, tensors_key(module._tensors())
    return module.training, module.num_layers, module.bidirectional, *kind


def trace(module: nn.Module) -> Plans | None:
    """Trace the cells of a `Recurrent` in its current mode; None for any other module.

    Raises:
        CellError: a cell computes what no backend could.
    """
    if not isinstance(module, Recurrent) or is_quantized(module):
        return None
    if untraceable(module._first_weight()):
        return None
    return {_key_of(module, module._first_weight()): make_plan(module, module._store)}


def adopt(module: nn.Module, plans: Plans | None) -> None:
    """Give a compiled module what `trace` returned."""
    if isinstance(module, CompiledRecurrent) and plans is not None:
        module._plans.update({(*key, module._guards.key): plan for key, plan in plans.items()})


def _with_own_states(run: Shortcut, stack: Stack) -> Shortcut:
    """A function of the states of the user's cell, from one of those of its normal form."""
    if stack.keeps_states:
        return run
    form = stack.form

    def own(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        given = tuple([state.contiguous() for state in initial(form, hx, weights)])
        y, h_n = run(x, given, weights)
        return y, tuple([h_n[place] for place in form.states])

    return own


def _computed_weights(
    module: CompiledRecurrent, plan: Plan, key: tuple[Any, ...], _: Any
) -> Sequence[Tensor]:
    """The weights of a call by a fast path, which cannot look them up by their names.

    Raises:
        KeyError: the plan is that of other tensors.
    """
    if module._plan_key(module._first_weight()) != key:
        raise KeyError(key)
    return plan.weights(module._store.bind(module))


def _outside_of_graphs(module: CompiledRecurrent, *given: Any) -> Any:
    """A call from code that torch.compile or torch.export traces, which breaks the graph there."""
    from rnnjit.execution.torch_ops import UNTRACED

    return UNTRACED["cell"](module._compiled, *given)
