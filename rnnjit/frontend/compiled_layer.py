"""The modules that replace an nn.RNN, nn.LSTM or nn.GRU and share its Parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.frontend import resets
from rnnjit.frontend.arguments import Result, as_hx, as_states
from rnnjit.frontend.capture import cell_of
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_class import stands_for
from rnnjit.frontend.overrides import fx_node
from rnnjit.runtime.torch_private import FlatWeightRefs
from rnnjit.spec import RNNSpec


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
    ) -> Result:
        """Run the layer; arguments, results and exceptions are those of torch's own class.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched; zeros if None. nn.LSTM has
                two, h and c, in a tuple.
            reset: boolean, of the shape of a dense `input` without its last dimension; True zeroes
                the state before that step. The results and gradients are those of cutting each
                sequence at these steps and running its parts separately.

        Returns:
            The outputs of the last layer at every step (`[T, B, D*H]`, or in the input's form) and
            the last state of every layer and direction, in the form of `hx`.

        Raises:
            AttributeError: `input` or `hx` is not a tensor.
            ValueError: `input` has a wrong rank or dtype, or `reset` a wrong shape.
            RuntimeError: any other wrong shape, dtype or device.
            IndexError: a PackedSequence without time steps.
            TypeError: `reset` is not a boolean Tensor, or is given with packed input.
            UnsupportedError: the backend that the user named declines the call.
            BackendError: a backend broke its contract, and no other may run the call.
        """
        if reset is not None:
            return self._with_resets(input, hx, reset)
        if torch.compiler.is_compiling():
            return self._traced(input, hx)
        result = self._call(input, hx)
        return self._eager_forward(input, hx) if result is None else result

    def _traced(self, x: Tensor | PackedSequence, hx: Any) -> Result:
        """What torch.compile and torch.export trace.

        Packed input breaks the graph: the number of rows in a step is unknown while tracing.
        """
        if isinstance(x, PackedSequence):
            _refuse_export("packed input")
            from rnnjit.execution.torch_ops import untraced

            broken: Result = untraced(self.forward, x, hx)
            return broken
        if self._weights_assigned:
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
        )
        result = self._traced_call(spec, x, hx)
        return self._eager_forward(x, hx) if result is None else result

    def _with_resets(self, x: Any, hx: Any, reset: Any) -> Result:
        node = fx_node(self, x, hx, reset)
        if node is not None:
            return cast("Result", node)
        if torch.compiler.is_compiling():
            _refuse_export("reset=")
            from rnnjit.execution.torch_ops import untraced

            # The lengths of the segments between resets are unknown while tracing.
            result: Result = untraced(self._with_resets, x, hx, reset)
            return result
        call = self._lowered(x, hx)
        spec, prepared = call.spec, call.prepared
        resets.check(x, reset)
        if not reset.any():
            return self.forward(x, hx)

        def run(packed: PackedSequence, states: States) -> tuple[PackedSequence, States]:
            y, h_n = self.forward(packed, as_hx(states))
            return cast("PackedSequence", y), cast("States", as_states(spec, h_n))

        y, h_n = resets.run(spec, x, prepared.hx, reset, run)
        return y, as_hx(h_n)


def _refuse_export(what: str) -> None:
    """Raise a RuntimeError if torch.export traces a call that its graph cannot hold.

    Where it uses Dynamo (`strict=True`), the graph break is the error.
    """
    if not torch.compiler.is_dynamo_compiling() and torch.compiler.is_exporting():
        raise RuntimeError(
            f"torch.export cannot trace a compiled layer's call with {what}: export the model that "
            "was not compiled, or give padded input"
        )


@stands_for(nn.RNN)
class CompiledRNN(CompiledLayer):
    """A compiled `nn.RNN`, see `CompiledLayer`.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str

    if TYPE_CHECKING:

        def forward(
            self,
            input: Tensor | PackedSequence,  # noqa: A002 - torch's own name
            hx: Tensor | None = None,
            reset: Tensor | None = None,
        ) -> tuple[Tensor | PackedSequence, Tensor]:
            """See `CompiledLayer.forward`; there is one state."""
            ...


@stands_for(nn.LSTM)
class CompiledLSTM(CompiledLayer):
    """A compiled `nn.LSTM`, see `CompiledLayer`."""

    # Methods that nn.LSTM's forward pass calls and nn.RNNBase lacks.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]  # as nn.LSTM does
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]  # as nn.LSTM does

    if TYPE_CHECKING:

        def forward(
            self,
            input: Tensor | PackedSequence,  # noqa: A002 - torch's own name
            hx: tuple[Tensor, Tensor] | None = None,
            reset: Tensor | None = None,
        ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
            """See `CompiledLayer.forward`; the states are h and c."""
            ...


@stands_for(nn.GRU)
class CompiledGRU(CompiledLayer):
    """A compiled `nn.GRU`, see `CompiledLayer`."""

    if TYPE_CHECKING:

        def forward(
            self,
            input: Tensor | PackedSequence,  # noqa: A002 - torch's own name
            hx: Tensor | None = None,
            reset: Tensor | None = None,
        ) -> tuple[Tensor | PackedSequence, Tensor]:
            """See `CompiledLayer.forward`; there is one state."""
            ...
