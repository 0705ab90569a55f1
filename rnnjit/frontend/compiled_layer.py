"""The modules that replace an nn.RNN, nn.LSTM or nn.GRU and share its Parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import GENERATION, RAISE, Fallback
from rnnjit.execution.all_states import run_stack_states
from rnnjit.frontend import resets
from rnnjit.frontend.arguments import AllStates, Result, as_hx, as_states, restore_states
from rnnjit.frontend.capture import cell_of, weight_names
from rnnjit.frontend.cell_loop import Resets
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_class import stands_for
from rnnjit.frontend.lowering import Call
from rnnjit.frontend.overrides import fx_node, overriding
from rnnjit.frontend.quantized_calls import apart, must_be_apart
from rnnjit.frontend.reset_layers import chosen_stack, resets_in_kernel, run_chosen_stack
from rnnjit.frontend.traced import run_any, run_under_autocast, why_not_traced
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import FlatWeightRefs, never_traced, scripting
from rnnjit.spec import Problem, RNNSpec

#: `Result`, and as a third value every state of every step.
ResultWithStates = tuple[Tensor | PackedSequence, Tensor | States, AllStates]
StatesT = TypeVar("StatesT")


class CompiledLayer(CompiledBase, FlatWeightRefs):
    """A stack of recurrent layers whose forward and backward passes run on rnnjit's backends.

    Made by `rnnjit.compile`, never directly. It has the Parameters, the `state_dict`, the hooks
    and the `repr` of the module that it was made from. It derives from `nn.RNNBase` and not from
    nn.RNN, nn.LSTM or nn.GRU, since torch.compile breaks the graph at those classes.
    """

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.RNN's own name
        hx: Any = None,
        reset: Tensor | None = None,
        reset_to: Any = None,
        return_states: bool = False,
    ) -> Result | ResultWithStates:
        """Run the layer; arguments, results and exceptions are those of torch's own class.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched; zeros if None. nn.LSTM has
                two, h and c, in a tuple.
            reset: boolean, of the shape of a dense `input` without its last dimension; True zeroes
                all states before that step. The results and gradients are those of cutting each
                sequence at these steps and running its parts separately.
            reset_to: where `reset` is set, the states that take the place of those before, instead
                of zeros; a tensor, or for nn.LSTM a tuple or list (h, c). Each is
                `[L, T, B, D*H]` (`[L, B, T, D*H]` if batch_first, `[L, T, D*H]` unbatched), or
                `[L, D*H]` for the same at every reset; L may be left out if it is 1. h has P
                features for H if there is a projection. Direction d reads columns
                `[d*H, (d+1)*H)`: the forward one starts at the step with these states, the
                backward one at the step before.
            return_states: whether to return every state of every step, too.

        Returns:
            The outputs of the last layer at every step (`[T, B, D*H]`, or in the input's form) and
            the last state of every layer and direction, in the form of `hx`. With `return_states`
            also, for each layer, a tuple of its states after every step (`(h,)`, and `(h, c)` for
            nn.LSTM), each in the form of the outputs: `[T, B, D*H]`, or a PackedSequence for
            packed input. They are before dropout, and share no memory with other results.

        Raises:
            AttributeError: `input` or `hx` is not a tensor.
            ValueError: `input` has a wrong rank or dtype, or `reset` or `reset_to` a wrong shape.
            RuntimeError: any other wrong shape, dtype or device; `return_states` where torch would
                use other weights than the module's parameters; in a graph of torch.compile or
                torch.export a PackedSequence with more rows than its `batch_sizes` add up to;
                ONNX export of a call with packed input, `reset` or `return_states`.
            IndexError: a PackedSequence without time steps.
            TypeError: `reset` is not a boolean Tensor, or is given with packed input; `reset_to` is
                not what it must be, or is given without `reset`.
            UnsupportedError: the backend that the user named declines the call.
            BackendError: a backend broke its contract, and no other may run the call.
        """
        if self._quantized and must_be_apart(input):
            options: Any = (reset, reset_to, return_states)
            return apart(lambda x, hx: self.forward(x, hx, *options), input, hx)
        if reset is not None or reset_to is not None or return_states:
            return self._extended_call(input, hx, reset, reset_to, return_states)
        if torch.compiler.is_compiling():
            return self._traced(input, hx)
        result = self._call(input, hx)
        return self._eager_forward(input, hx) if result is None else result

    def _traced(
        self,
        x: Tensor | PackedSequence,
        hx: Any,
        reset: Any = None,
        reset_to: Any = None,
        return_states: bool = False,
    ) -> Result | ResultWithStates:
        """What torch.compile and torch.export trace."""
        plain = reset is None and not return_states and not isinstance(x, PackedSequence)
        if plain and self._weights_assigned:
            return cast("Result", self._eager_forward(x, hx))
        spec = RNNSpec(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            cell_of(self),
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
            self.proj_size,
            self._quantized,
        )
        if plain:
            result = self._traced_call(spec, cast("Tensor", x), hx)
            return self._eager_forward(x, hx) if result is None else result
        weights = tuple([getattr(self, name) for name in weight_names(self)])
        why = "assigned" if self._weights_assigned else why_not_traced(weights[0])
        settings = spec, weights, self._key, self.training, x, hx, reset, reset_to
        if why == "autocast" and not return_states:
            found = run_under_autocast(self._torch_class, *settings)
            if found is not None:
                return found
        if why:
            from rnnjit.execution.torch_ops import UNTRACED, WHY_UNTRACED

            # Where it uses Dynamo (`strict=True`), the graph break is the error.
            if not torch.compiler.is_dynamo_compiling() and torch.compiler.is_exporting():
                raise RuntimeError(
                    f"torch.export cannot trace this call of a compiled layer: {WHY_UNTRACED[why]}"
                )
            untraced = UNTRACED[why]
            broken: Result = untraced(self.forward, x, hx, reset, reset_to, return_states)
            return broken
        if torch.onnx.is_in_onnx_export():
            raise RuntimeError(
                "a compiled layer's call with packed input, reset or return_states cannot be "
                "exported to ONNX, which does not have rnnjit's operators: leave it out, give "
                "padded input instead of packed, or export a model that was not compiled"
            )
        y, h_n, states = run_any(*settings, return_states)
        return (y, h_n) if states is None else (y, h_n, states)

    def _extended_call(
        self, x: Any, hx: Any, reset: Any, reset_to: Any, return_states: bool
    ) -> Result | ResultWithStates:
        """A call with arguments that torch's own layers do not have."""
        if reset is None and reset_to is not None:
            raise TypeError(
                "reset_to needs reset: it says from which states a sequence starts anew where the "
                "mask is set; the states that all start from are hx"
            )
        node = fx_node(self, x, hx, reset, reset_to=reset_to, return_states=return_states or None)
        if node is not None:
            return cast("Result", node)
        if torch.compiler.is_compiling():
            return self._traced(x, hx, reset, reset_to, return_states)
        if reset is None:
            return self._with_states(x, hx)
        return self._with_resets(x, hx, reset, reset_to, return_states)

    @never_traced
    def _with_resets(
        self, x: Any, hx: Any, reset: Any, reset_to: Any, return_states: bool
    ) -> Result | ResultWithStates:
        if FORK.forked and needs_one_thread():
            with one_thread():
                return self._with_resets(x, hx, reset, reset_to, return_states)
        call = self._lowered(x, hx)
        spec = call.spec
        resets.check(x, reset)
        starts = resets.starting_states(spec, x, reset_to)
        cuts = Resets(resets.time_major(spec, reset), starts)
        if reset.numel() == 0:
            return self.forward(x, hx, return_states=return_states)
        single, in_kernel = resets.is_single_step(spec, x), self._resets_in_kernel(call, x, hx)
        if in_kernel and not single:
            found = self._by_kernels(call, cuts, return_states=return_states)
            if found is not None:
                return found
        # The result must depend on what needs a gradient, whatever the mask.
        if not ((in_kernel and single) or cuts.recorded or reset.any()):
            return self.forward(x, hx, return_states=return_states)
        if single:
            before = resets.replaced(spec, x, call.prepared.hx, reset, starts)
            return self.forward(x, as_hx(before), return_states=return_states)

        def run(packed: PackedSequence, states: States) -> resets.Outcome:
            y, h_n, *others = self.forward(packed, as_hx(states), return_states=return_states)
            rows: Any = (y, others[0] if others else ())
            layers = tuple([tuple([state.data for state in layer]) for layer in rows[1]])
            return resets.Outcome(rows[0].data, cast("States", as_states(spec, h_n)), layers)

        y, h_n, states = resets.run(spec, x, call.prepared.hx, reset, starts, run)
        return (y, as_hx(h_n), states) if return_states else (y, as_hx(h_n))

    def _resets_in_kernel(self, call: Call, x: Any, hx: Any) -> bool:
        """Whether the backend of the same call without resets has its kernels reset states."""
        if self._weights_assigned or call.special is not None:
            return False
        if scripting() or overriding(self, x, hx):
            return False
        if self._generation != GENERATION.now:
            self._forget_choices()
        return resets_in_kernel(self._choose, call.spec, call.problem)

    def _choose(self, spec: RNNSpec, problem: Problem) -> tuple[Backend, Fallback]:
        return self._choice_for(spec, problem, self._choices)

    def _by_kernels(
        self, call: Call, cuts: Resets, *, return_states: bool
    ) -> Result | ResultWithStates | None:
        """A call whose layers reset themselves; None if one of them cannot."""
        spec, recorded = call.spec, torch.is_grad_enabled() and cuts.recorded
        problem = call.problem._replace(needs_grad=call.problem.needs_grad or recorded)
        layers = chosen_stack(self._choose, spec, problem, cuts, every=return_states)
        if layers is None:
            return None
        dropout = spec.dropout if getattr(self, "training", False) else 0.0
        y, h_n, states = run_chosen_stack(
            layers, call.rows, problem, call.x, call.hx, call.weights, cuts, dropout
        )
        if not return_states:
            return call.restore(y, h_n)
        # Copied first, since y may be laid out anew in place.
        copies = restore_states(spec, call.prepared, states)
        return (*call.restore(y, h_n), copies)

    @never_traced
    def _with_states(self, x: Any, hx: Any) -> ResultWithStates:
        """A call that returns every state; torch's own layers could not."""
        if FORK.forked and needs_one_thread():
            with one_thread():
                return self._with_states(x, hx)
        if self._weights_assigned:
            raise RuntimeError(
                "return_states needs a layer that runs on its own parameters, but what torch's "
                "forward uses was assigned: copy the values into the parameters"
            )
        call = self._lowered(x, hx)
        backend, fallback = self._choice_for_states(call, x, hx)
        y, h_n, states = run_stack_states(
            *(backend, call.spec, call.problem, call.rows, call.x, call.hx, call.weights),
            *(getattr(self, "training", False), fallback),
        )
        # Copied first, since y may be laid out anew in place.
        copies = restore_states(call.spec, call.prepared, states)
        return (*call.restore(y, h_n), copies)

    def _choice_for_states(self, call: Call, x: Any, hx: Any) -> tuple[Backend, Fallback]:
        if call.special is not None or scripting() or overriding(self, x, hx):
            return ReferenceBackend(), RAISE
        if self._generation != GENERATION.now:
            self._forget_choices()
        return self._choice(call, self._choices)


class _Forward(Protocol[StatesT]):
    """`CompiledLayer.forward` as type checkers see it; a state or a tuple of states is StatesT."""

    @overload
    def __call__(
        self,
        input: Tensor | PackedSequence,
        hx: StatesT | None = None,
        reset: Tensor | None = None,
        reset_to: StatesT | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[Tensor | PackedSequence, StatesT]: ...

    @overload
    def __call__(
        self,
        input: Tensor | PackedSequence,
        hx: StatesT | None = None,
        reset: Tensor | None = None,
        reset_to: StatesT | None = None,
        *,
        return_states: Literal[True],
    ) -> tuple[Tensor | PackedSequence, StatesT, AllStates]: ...


@stands_for(nn.RNN)
class CompiledRNN(CompiledLayer):
    """A compiled `nn.RNN`, see `CompiledLayer`.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str

    if TYPE_CHECKING:
        forward: _Forward[Tensor]  # type: ignore[assignment]  # narrower


@stands_for(nn.LSTM)
class CompiledLSTM(CompiledLayer):
    """A compiled `nn.LSTM`, see `CompiledLayer`."""

    # Methods that nn.LSTM's forward pass calls and nn.RNNBase lacks.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]  # as nn.LSTM does
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]  # as nn.LSTM does

    if TYPE_CHECKING:
        forward: _Forward[tuple[Tensor, Tensor]]  # type: ignore[assignment]  # narrower


@stands_for(nn.GRU)
class CompiledGRU(CompiledLayer):
    """A compiled `nn.GRU`, see `CompiledLayer`."""

    if TYPE_CHECKING:
        forward: _Forward[Tensor]  # type: ignore[assignment]  # narrower
