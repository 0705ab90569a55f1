"""`CompiledRNNCell`: the module that replaces an nn.RNNCell and shares its Parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from rnnjit.frontend.capture import CELL_OF_NONLINEARITY, as_size, capture
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_class import stands_for
from rnnjit.frontend.lowering import Call, as_sequence, lower_sequence
from rnnjit.frontend.overrides import overriding
from rnnjit.frontend.torch_errors import REFUSALS
from rnnjit.runtime.torch_private import parameters_of, transforming
from rnnjit.spec import RNNSpec


@stands_for(nn.RNNCell)
class CompiledRNNCell(CompiledBase, nn.RNNCell):
    """An nn.RNNCell that runs on rnnjit's backends, as one step of a layer.

    Made by `rnnjit.compile`, never directly; see `CompiledRNN`.

    Attributes:
        nonlinearity: "tanh" or "relu".
    """

    nonlinearity: str
    #: Whether the fast paths are those of a cell with biases.
    _biased = True

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
        plain = type(input) is Tensor and (hx is None or type(hx) is Tensor)
        if not plain and overriding(self, input, hx):
            result = None
        elif torch.compiler.is_compiling():
            return self._traced(input, hx)
        elif self._has_one_bias():
            result = None
        else:
            try:
                sequence = as_sequence(input, hx)
            except REFUSALS:
                sequence = input, hx  # `_lower` says what is wrong with them
            result = self._call(*sequence, (input, hx))
        if result is None:
            return cast("Tensor", self._eager_forward(input, hx))
        h_n = cast("Tensor", result[1])
        if input.dim() == 1:
            return h_n[0, 0]
        # In place, so that the state is no view, which `detach_` refuses.
        return h_n.squeeze(0) if type(h_n) is not Tensor or transforming() else h_n.squeeze_(0)

    def _traced(self, x: Any, hx: Any) -> Tensor:
        """What torch.compile and torch.export trace."""
        _check_kinds(x, hx)
        _check_shapes(self.input_size, self.hidden_size, x, hx)
        if (self.bias_ih is None) != (self.bias_hh is None):
            return cast("Tensor", self._eager_forward(x, hx))
        kind, bias = CELL_OF_NONLINEARITY[self.nonlinearity], self.bias_ih is not None
        spec = RNNSpec(self.input_size, self.hidden_size, 1, kind, bias)
        try:
            result = self._traced_call(spec, *as_sequence(x, hx))
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        if result is None:
            return cast("Tensor", self._eager_forward(x, hx))
        h_n = cast("Tensor", result[1])
        return h_n.squeeze(0) if x.dim() == 2 else h_n[0, 0]

    def _lower(self, x: Any, hx: Any) -> Call:
        _check_kinds(x, hx)
        width = None if hx is not None else as_size("hidden_size", self.hidden_size)
        spec = capture(self)
        _check_shapes(spec.input_size, spec.hidden_size, x, hx)
        if width not in (None, spec.hidden_size):
            raise RuntimeError(
                f"weight_ih must have shape {[width, spec.input_size]}, got "
                f"{[spec.hidden_size, spec.input_size]} (hidden_size={width})"
            )
        try:
            return lower_sequence(self, *as_sequence(x, hx))
        except ValueError as error:
            # For a wrong dtype nn.RNN raises ValueError, but nn.RNNCell RuntimeError.
            raise RuntimeError(str(error)) from None
        except AttributeError:
            if self.weight_ih is None:
                raise TypeError("weight_ih must be a Tensor, got NoneType") from None
            raise

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


def _check_kinds(x: Any, hx: Any) -> None:
    """Check the types and ranks of the arguments, in the order in which nn.RNNCell does."""
    for name, value in (("input", x), ("hx", hx))[: 1 if hx is None else 2]:
        if not isinstance(value, Tensor):
            raise AttributeError(f"{name} must be a Tensor, got {type(value).__name__}")
        if value.is_nested:
            raise RuntimeError(f"{name} must be a dense tensor, got a nested one")
        if value.dim() not in (1, 2):
            raise ValueError(f"{name} must be 1-D or 2-D, got {value.dim()}-D: {list(value.shape)}")


def _check_shapes(input_size: int, hidden_size: int, x: Tensor, hx: Tensor | None) -> None:
    """Check the shapes of the arguments, in the order in which nn.RNNCell does."""
    if x.shape[-1] != input_size:
        raise RuntimeError(
            f"input must have input_size={input_size} features in its last dimension, "
            f"got {x.shape[-1]}: shape {list(x.shape)}"
        )
    if hx is not None and (hx.shape[:-1] != x.shape[:-1] or hx.shape[-1] != hidden_size):
        # Torch compares the first dimensions, and then asks for the second.
        error = IndexError if hx.dim() < x.dim() and hx.shape[0] == x.shape[0] else RuntimeError
        raise error(f"hx must have shape {[*x.shape[:-1], hidden_size]}, got {list(hx.shape)}")
