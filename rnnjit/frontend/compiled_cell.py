"""`CompiledRNNCell`: the module that replaces an nn.RNNCell and shares its Parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from rnnjit.frontend.capture import CELL_OF_NONLINEARITY
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.lowering import as_sequence
from rnnjit.spec import RNNSpec

# It uses only attributes that every RNNCellBase has.
_eager_forward = cast("Callable[..., Tensor]", nn.RNNCell.forward)


def _check(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise AttributeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise RuntimeError(f"{name} must be a dense tensor, got a nested one")
    if value.dim() not in (1, 2):
        raise ValueError(f"{name} must be 1-D or 2-D, got {value.dim()}-D: {list(value.shape)}")


class CompiledRNNCell(CompiledBase, nn.RNNCellBase):
    """An nn.RNNCell that runs on rnnjit's backends, as one step of a layer.

    Made by `rnnjit.compile`, never directly; see `CompiledRNN`.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str
    _source_class: type[nn.Module] = nn.RNNCell
    _torch_class: type[nn.Module] = nn.RNNCell

    def forward(
        self,
        input: Tensor,  # noqa: A002 - nn.RNNCell's own name
        hx: Tensor | None = None,
    ) -> Tensor:
        """Compute one step; arguments, results and exceptions are those of `nn.RNNCell.forward`.

        Args:
            input: `[B, I]`, or `[I]` unbatched.
            hx: the previous state, `[B, H]` or `[H]`; zeros if None.

        Returns:
            The new state, `[B, H]` or `[H]`.

        Raises:
            AttributeError: `input` or `hx` is not a Tensor.
            ValueError: `input` or `hx` is not 1-D or 2-D.
            RuntimeError: any other wrong shape, dtype or device.
            UnsupportedError: the backend that the user named declines the call.
        """
        _check("input", input)
        if hx is not None:
            _check("hx", hx)
            if hx.shape[:-1] != input.shape[:-1] or hx.shape[-1] != self.hidden_size:
                expected = [*input.shape[:-1], self.hidden_size]
                raise RuntimeError(f"hx must have shape {expected}, got {list(hx.shape)}")
        batched = input.dim() == 2
        x, h0 = as_sequence(input, hx)
        try:
            if torch.compiler.is_compiling():
                kind = CELL_OF_NONLINEARITY[self.nonlinearity]
                spec = RNNSpec(self.input_size, self.hidden_size, 1, kind, self.bias)
                result = self._traced_call(spec, x, h0)
            else:
                result = self._call(x, h0)
        except ValueError as error:
            # For a wrong dtype nn.RNN raises ValueError, but nn.RNNCell RuntimeError.
            raise RuntimeError(str(error)) from None
        except AttributeError:
            if getattr(self, "weight_ih", input) is None:
                raise TypeError("weight_ih must be a Tensor, got NoneType") from None
            raise
        if result is None:
            return _eager_forward(self, input, hx)
        h_n = cast("Tensor", result[1])
        return h_n.squeeze(0) if batched else h_n[0, 0]
