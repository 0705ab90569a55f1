"""The short way through a call like one before: inference on the CPU, dense, a state or none.

A streaming step takes a few microseconds, and so little may be spent on checking it. A `Route`
remembers what the checks of a first call found, for shapes and dtypes that are compared anew at
every call; whatever is unlike goes the long way, which checks all and words every error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter

from rnnjit.backend import Inference
from rnnjit.spec import RNNSpec

_autocast_enabled = torch._C._is_any_autocast_enabled
_functorch_stack = torch._C._functorch.peek_interpreter_stack
_grad_enabled = torch.is_grad_enabled
_threads = torch.get_num_threads


class Route:
    """Calls of one module with one shape of input.

    Attributes:
        run: the backend's function for such calls.
        names: of the module's weights.
        shapes: of the weights.
        h0_shape: of the state, `[L*D, B, H]`.
        dtype: of everything.
        threads: torch's thread count that `run` was made for.
    """

    __slots__ = ("dtype", "h0_shape", "names", "run", "shapes", "threads")

    def __init__(
        self, run: Inference, spec: RNNSpec, names: list[str], x: Tensor, h0_shape: torch.Size
    ) -> None:
        self.run = run
        self.names, self.shapes = tuple(names), spec.weight_shapes
        self.h0_shape, self.dtype = h0_shape, x.dtype
        self.threads = _threads()

    def __call__(
        self, module: nn.Module, x: Tensor, h0: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """The result `(y, h_n)`, or None if this call must go the long way.

        `x` is known to be a plain Tensor of the route's shape.
        """
        if (
            _grad_enabled()
            or _functorch_stack() is not None
            or forward_ad._current_level >= 0
            or _autocast_enabled()
            or _threads() != self.threads
        ):
            return None
        dtype = self.dtype
        if x.dtype is not dtype or not x.is_cpu or not x.is_contiguous() or x.is_neg():
            return None
        if h0 is None:
            h0 = x.new_zeros(self.h0_shape)
        elif (
            type(h0) is not Tensor
            or h0.shape != self.h0_shape
            or h0.dtype is not dtype
            or not h0.is_cpu
            or not h0.is_contiguous()
            or h0.is_neg()
        ):
            return None
        parameters = module._parameters
        weights = []
        for name, shape in zip(self.names, self.shapes):  # noqa: B905 - equally long, and faster
            weight = parameters.get(name)
            if (
                type(weight) is not Parameter
                or weight.shape != shape
                or weight.dtype is not dtype
                or not weight.is_cpu
                or not weight.is_contiguous()
            ):
                return None
            weights.append(weight)
        return self.run(x, h0, weights)


def suits(spec: RNNSpec, x: Tensor, training: bool) -> bool:
    """Whether calls with an input like `x` may have a route: their result needs no reshaping."""
    if (
        not x.is_cpu
        or x.dim() != 3
        or x.numel() == 0
        or (spec.dropout and training and spec.num_layers > 1)
    ):
        return False
    return not spec.batch_first or 1 in x.shape[:2]
