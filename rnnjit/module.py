"""`CompiledRNN`: the module that stands in for an nn.RNN, sharing its Parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.capture import capture, weight_shapes, weights_of
from rnnjit.dispatch import choose, special_context
from rnnjit.inputs import Prepared, check_weights, prepare, restore
from rnnjit.reference import EagerBackend, ReferenceBackend
from rnnjit.registry import resolve
from rnnjit.spec import Problem, RNNSpec
from rnnjit.stack import run_stack

_CHOICES_KEPT = 512
_REFERENCE = ReferenceBackend()
_EAGER = EagerBackend()


class CompiledRNN(nn.RNNBase):
    """An nn.RNN whose forward and backward passes run on rnnjit's backends.

    Made by `rnnjit.compile`, never directly. It has the Parameters, the `state_dict`, the hooks
    and the representation of the module that it was made from. It derives from `nn.RNNBase`, not
    from `nn.RNN`, at which torch.compile breaks the graph.

    Attributes:
        backend: what was asked for: "auto", a backend's name, or a `Backend`.
    """

    backend: str | Backend
    _choices: dict[tuple[RNNSpec, Problem], Backend]
    _source_class: type[nn.Module]

    def __init__(self) -> None:
        raise TypeError("CompiledRNN is not constructed: call rnnjit.compile(module)")

    @property
    def nonlinearity(self) -> str:
        """"tanh" or "relu"."""
        return capture(self).nonlinearity

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer; arguments, results and exceptions are those of `nn.RNN.forward`.

        Args:
            input: `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]` unbatched, or packed.
            hx: initial state `[L*D, B, H]`, or `[L*D, H]` if unbatched; zeros if None.

        Returns:
            The states of the last layer at every step (`[T, B, D*H]`, or in the input's form) and
            the last state of every layer and direction (`[L*D, B, H]`).

        Raises:
            UnsupportedError: the backend that was asked for by name declines the call.
        """
        spec = capture(self)
        weights = weights_of(self)
        check_weights(self._flat_weights_names, weights, weight_shapes(spec))
        first = weights[0]
        prepared = prepare(spec, first.dtype, first.device, input, hx)
        h0 = prepared.h0
        if h0 is None:
            shape = (spec.num_layers * spec.num_directions, prepared.rows.B, spec.hidden_size)
            h0 = prepared.x.new_zeros(shape)
        problem = problem_of(prepared, h0, weights)
        backend = self._backend_for(spec, problem, prepared.x, h0, weights)
        y, h_n = run_stack(
            backend, spec, prepared.rows, prepared.x, h0, weights, self.training, problem.needs_grad
        )
        return restore(spec, prepared, y, h_n)

    def _backend_for(
        self, spec: RNNSpec, problem: Problem, x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]
    ) -> Backend:
        special = special_context((x, h0, *weights))
        if special is not None:
            return _EAGER if special.startswith("autocast") else _REFERENCE
        key = (spec, problem)
        chosen = self._choices.get(key)
        if chosen is None:
            chosen = choose(spec, problem, resolve(self.backend))
            if len(self._choices) >= _CHOICES_KEPT:
                self._choices.clear()
            self._choices[key] = chosen
        return chosen

    def _get_name(self) -> str:
        return self._source_class.__name__

    def __getattr__(self, name: str) -> Any:
        """Attributes of a subclass of nn.RNN (its methods, a parametrized weight) stay reachable."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            source = self.__dict__.get("_source_class", nn.RNN)
            for cls in source.__mro__:
                if cls is nn.RNN:
                    raise
                if name in vars(cls):
                    found = vars(cls)[name]
                    bind = getattr(found, "__get__", None)
                    return found if bind is None else bind(self, type(self))
            raise

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_choices": {}}


def problem_of(prepared: Prepared, h0: Tensor, weights: tuple[Tensor, ...]) -> Problem:
    """The facts of a call that a backend decides upon."""
    x, rows = prepared.x, prepared.rows
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad or h0.requires_grad or any([w.requires_grad for w in weights])
    )
    return Problem(
        x.dtype, x.device.type, rows.T, rows.B, rows.N, prepared.packed is not None, needs_grad
    )
