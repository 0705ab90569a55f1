"""`CompiledRNN`: the module that stands in for an nn.RNN, sharing its Parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit import resets
from rnnjit.calls import Calls, Result
from rnnjit.capture import NONLINEARITY, capture, weights_of
from rnnjit.inputs import prepare
from rnnjit.spec import RNNSpec

# It asks of its module what every RNNBase has; where torch rewrites the layer it is the layer.
_eager_forward = cast("Callable[..., Result]", nn.RNN.forward)


class CompiledRNN(Calls, nn.RNNBase):
    """An nn.RNN whose forward and backward passes run on rnnjit's backends.

    Made by `rnnjit.compile`, never directly. It has the Parameters, the `state_dict`, the hooks
    and the representation of the module that it was made from. It derives from `nn.RNNBase`, not
    from `nn.RNN`, at which torch.compile breaks the graph.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str
    _source_class: type[nn.Module] = nn.RNN

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.RNN's own name
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
    ) -> Result:
        """Run the layer; arguments, results and exceptions are those of `nn.RNN.forward`.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched; zeros if None.
            reset: where the state is zeroed before a step, boolean, of the shape of a dense `input`
                without its features. Each sequence then is what it would be if it were cut there
                and its parts were run one by one, gradients included.

        Returns:
            The states of the last layer at every step (`[T, B, D*H]`, or in the input's form) and
            the last state of every layer and direction (`[L*D, B, H]`).

        Raises:
            UnsupportedError: the backend that was asked for by name declines the call.
        """
        if reset is not None:
            return self._with_resets(input, hx, reset)
        if torch.compiler.is_compiling():
            return self._traced(input, hx)
        result = self._call(input, hx)
        return _eager_forward(self, input, hx) if result is None else result

    def _traced(self, x: Tensor | PackedSequence, hx: Tensor | None) -> Result:
        """What torch.compile and torch.export trace.

        Packed input breaks the graph: how many rows a step has is not known while tracing.
        """
        if isinstance(x, PackedSequence):
            from rnnjit.traced import untraced

            broken: Result = untraced(self.forward, x, hx)
            return broken
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
        result = self._traced_call(spec, x, hx)
        return _eager_forward(self, x, hx) if result is None else result

    def _with_resets(self, x: Any, hx: Tensor | None, reset: Any) -> Result:
        if torch.compiler.is_compiling():
            from rnnjit.traced import untraced

            # How long the stretches are is not known while tracing.
            result: Result = untraced(self._with_resets, x, hx, reset)
            return result
        spec = capture(self)
        prepared = prepare(spec, weights_of(self)[0], x, hx)
        resets.check(x, reset)
        if not reset.any():
            return self.forward(x, hx)
        if prepared.h0 is not None:
            hx = prepared.h0 if prepared.batched else prepared.h0.squeeze(1)
        run = cast("resets.Run", self.forward)
        return resets.run(spec, x, hx, reset, run)
