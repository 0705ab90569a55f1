"""The modules that replace an nn.RNNCell, nn.LSTMCell or nn.GRUCell and share its Parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import GENERATION, Fallback
from rnnjit.execution.fast_call import fast_cell_call
from rnnjit.frontend.arguments import Result, as_hx, as_states, states_of
from rnnjit.frontend.capture import CELL_OF_CLASS, as_size, capture, cell_of
from rnnjit.frontend.compiled_base import CompiledBase, FastPaths, remember
from rnnjit.frontend.compiled_class import stands_for
from rnnjit.frontend.lowering import Call, as_sequence, lower_sequence
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.quantized_calls import apart, must_be_apart
from rnnjit.frontend.torch_errors import REFUSALS
from rnnjit.ir import RNN_TANH, CellSpec
from rnnjit.runtime.openmp import FORK
from rnnjit.runtime.torch_private import (
    never_traced,
    parameters_of,
    profiler_runs,
    transforming,
)
from rnnjit.spec import RNNSpec


class CompiledCell(CompiledBase, nn.RNNCellBase):
    """A cell of torch that runs on rnnjit's backends, as one step of a layer.

    Made by `rnnjit.compile`, never directly. It has the Parameters, the `state_dict`, the hooks and
    the `repr` of the module that it was made from.
    """

    #: The computation, or another with the same states.
    _kind_of_cell: ClassVar[CellSpec]
    #: Whether the fast paths are those of a cell with biases.
    _biased = True

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's own name
        hx: Any = None,
    ) -> Any:
        """Compute one step; arguments, results and exceptions are those of torch's own class.

        Args:
            input: `[B, I]`, or `[I]` unbatched.
            hx: the previous state, `[B, H]` or `[H]`; zeros if None. nn.LSTMCell has two, h and c,
                in a tuple or list.

        Returns:
            The new state, `[B, H]` or `[H]`, or a tuple of h and c.

        Raises:
            AttributeError: `input` or a state is not a Tensor.
            ValueError: `input` or a state is not 1-D or 2-D.
            TypeError: the states of an nn.LSTMCell are neither a tuple nor a list.
            IndexError: a state without a batch dimension is as long as the batch, or there are too
                few states of unbatched input.
            RuntimeError: any other wrong shape, dtype or device, or too few or too many states.
            UnsupportedError: the backend that the user named declines the call.
        """
        if self._quantized and must_be_apart(input):
            return apart(self.forward, input, hx)
        if not _all_plain(input, hx) and overriding(self, input, hx):
            return self._eager_forward(input, hx)
        if torch.compiler.is_compiling():
            return self._traced(input, hx)
        if self._has_one_bias():
            return self._eager_forward(input, hx)
        if (found := self._fast_step(input, hx)) is not None:
            return found[1]
        promotes = False
        try:
            sequence = as_sequence(input, hx, self._kind_of_cell)
            promotes = _promotes(*sequence)
        except REFUSALS:
            sequence = input, hx  # `_lower` says what is wrong with them
        result = None if promotes else self._call(*sequence, (input, hx))
        return self._eager_forward(input, hx) if result is None else _new_state(input, result[1])

    def _traced(self, x: Any, hx: Any) -> Any:
        """What torch.compile and torch.export trace."""
        _check_kinds(self._kind_of_cell, x, hx)
        bias = self.bias_ih is not None
        spec = RNNSpec(
            *(self.input_size, self.hidden_size, 1, cell_of(self), bias), quantized=self._quantized
        )
        _check_shapes(spec, x, hx)
        sequence = as_sequence(x, hx, self._kind_of_cell)
        if (self.bias_hh is not None) != bias or _promotes(*sequence):
            return self._eager_forward(x, hx)
        try:
            result = self._traced_call(spec, *sequence)
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        return self._eager_forward(x, hx) if result is None else _new_state(x, result[1])

    def _lower(self, x: Any, hx: Any) -> Call:
        _check_kinds(self._kind_of_cell, x, hx)
        width = None if hx is not None else as_size("hidden_size", self.hidden_size)
        spec = capture(self)
        _check_shapes(spec, x, hx)
        if width is not None and width != spec.hidden_size:
            gates = len(spec.cell.gates)
            raise RuntimeError(
                f"weight_ih must have shape {[gates * width, spec.input_size]}, got "
                f"{[gates * spec.hidden_size, spec.input_size]} (hidden_size={width})"
            )
        try:
            return lower_sequence(self, *as_sequence(x, hx, self._kind_of_cell))
        except ValueError as error:
            # For a wrong dtype torch's layers raise ValueError, but its cells RuntimeError.
            raise RuntimeError(str(error)) from None
        except AttributeError:
            if self.weight_ih is None:
                raise TypeError("weight_ih must be a Tensor, got NoneType") from None
            raise

    @never_traced
    def _fast_step(self, x: Any, hx: Any) -> Result | None:
        """The result of a call that matches a fast path for the arguments as they are, or None."""
        if FORK.forked or self._generation != GENERATION.now or profiler_runs():
            return None
        # Those of three dimensions are for a layer's form.
        taken = type(x) is Tensor and x.dim() == 2
        return self._by_fast_path(self._fast_paths, x, hx) if taken else None

    def _call_as_given(
        self, call: Call, backend: Backend, fallback: Fallback, paths: FastPaths, x: Any, hx: Any
    ) -> Result | None:
        """Run the call by the fast path that `_fast_step` finds from then on."""
        if hx is None:
            states = tuple([state.squeeze(0) for state in call.hx])
        else:
            states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        weights = call.weights
        run = fast_cell_call(backend, call.spec, call.problem, x, states, weights, fallback)
        if run is None:
            return None
        y, h_n = run(x, states, weights)
        remember(paths, self._fast_path(run, x, states, weights), x.shape)
        return y, as_hx(h_n)

    def _by_reference(self, x: Any, hx: Any) -> Any:
        return _new_state(x, super()._by_reference(x, hx)[1])

    def _has_one_bias(self) -> bool:
        """Whether the cell has one bias of two: torch's cells take that, our layers do not.

        The fast paths of a cell without biases do not look for any: they are dropped when it gets
        some, by whatever way.
        """
        own = parameters_of(self)
        first, second = own.get("bias_ih"), own.get("bias_hh")
        if first is None or second is None:
            first, second = getattr(self, "bias_ih", own), getattr(self, "bias_hh", own)
            if first is own or second is own:
                return False  # deleted, which `_lower` says
        biased = first is not None
        if biased is not self._biased:
            self.__dict__.update(_biased=biased, _fast_paths={})
        return biased is not (second is not None)


def _all_plain(x: Any, hx: Any) -> bool:
    """A quick look whether the arguments are tensors of torch's own class."""
    if type(x) is not Tensor:
        return False
    if hx is None or type(hx) is Tensor:
        return True
    return type(hx) is tuple and all([type(state) is Tensor for state in hx])  # noqa: C419 - faster


def _promotes(x: Tensor, hx: Any) -> bool:
    """Whether torch's cell gets states of several dtypes, and takes them.

    The first state meets the weights and must have their dtype. The others meet the result element
    by element, where torch promotes dtypes.
    """
    if type(hx) is not tuple or hx[0].dtype is not x.dtype:
        return False
    return any([state.dtype is not x.dtype for state in hx])  # noqa: C419 - faster


def _new_state(x: Tensor, h_n: Tensor | States) -> Any:
    """The states of a layer after one step, or of a cell, in the form of a cell's result."""
    if isinstance(h_n, tuple):
        return tuple([_new_state(x, state) for state in h_n])
    if x.dim() == 1:
        return h_n[0, 0]
    if h_n.dim() == 2:
        return h_n
    if torch.compiler.is_compiling() or type(h_n) is not Tensor or transforming():
        return h_n.squeeze(0)
    return h_n.squeeze_(0)  # in place, so that the state is no view, which `detach_` refuses


def _check_kinds(cell: CellSpec, x: Any, hx: Any) -> None:
    """Check the types and ranks of the arguments, in the order in which torch's cells do."""
    _check_kind("input", x)
    if hx is None:
        return
    if len(cell.states) == 1:
        _check_kind("hx", hx)
        return
    if not isinstance(hx, (tuple, list, Tensor)):
        states_of(cell.states, hx, indexed=False)  # it says what is wrong
    for index, state in enumerate(hx):
        _check_kind(f"hx[{index}]", state)


def _check_kind(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise AttributeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise RuntimeError(f"{name} must be a dense tensor, got a nested one")
    if value.dim() not in (1, 2):
        raise ValueError(f"{name} must be 1-D or 2-D, got {value.dim()}-D: {list(value.shape)}")


def _check_shapes(spec: RNNSpec, x: Tensor, hx: Any) -> None:
    """Check the shapes of the arguments, in the order in which torch's cells do."""
    states = as_states(spec, hx, indexed=x.dim() == 1) or ()
    if x.shape[-1] != spec.input_size:
        raise RuntimeError(
            f"input must have input_size={spec.input_size} features in its last dimension, "
            f"got {x.shape[-1]}: shape {list(x.shape)}"
        )
    for index, state in enumerate(states):
        if state.shape[:-1] != x.shape[:-1] or state.shape[-1] != spec.hidden_size:
            # Torch compares the first dimensions, and then asks for the second.
            flat = state.dim() < x.dim() and state.shape[0] == x.shape[0]
            name = "hx" if len(states) == 1 else f"hx[{index}]"
            raise (IndexError if flat else RuntimeError)(
                f"{name} must have shape {[*x.shape[:-1], spec.hidden_size]}, "
                f"got {list(state.shape)}"
            )


@stands_for(nn.RNNCell)
class CompiledRNNCell(CompiledCell, nn.RNNCell):
    """A compiled `nn.RNNCell`, see `CompiledCell`.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str
    _kind_of_cell = RNN_TANH

    if TYPE_CHECKING:

        def forward(
            self,
            input: Tensor,  # noqa: A002 - torch's own name
            hx: Tensor | None = None,
        ) -> Tensor:
            """See `CompiledCell.forward`; there is one state."""
            ...


@stands_for(nn.LSTMCell)
class CompiledLSTMCell(CompiledCell, nn.LSTMCell):
    """A compiled `nn.LSTMCell`, see `CompiledCell`."""

    _kind_of_cell = CELL_OF_CLASS[nn.LSTMCell]

    if TYPE_CHECKING:

        def forward(
            self,
            input: Tensor,  # noqa: A002 - torch's own name
            hx: tuple[Tensor, Tensor] | None = None,
        ) -> tuple[Tensor, Tensor]:
            """See `CompiledCell.forward`; the states are h and c."""
            ...


@stands_for(nn.GRUCell)
class CompiledGRUCell(CompiledCell, nn.GRUCell):
    """A compiled `nn.GRUCell`, see `CompiledCell`."""

    _kind_of_cell = CELL_OF_CLASS[nn.GRUCell]

    if TYPE_CHECKING:

        def forward(
            self,
            input: Tensor,  # noqa: A002 - torch's own name
            hx: Tensor | None = None,
        ) -> Tensor:
            """See `CompiledCell.forward`; there is one state."""
            ...
