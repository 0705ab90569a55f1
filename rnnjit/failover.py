"""What `auto` does where a backend raises: the next one that accepts the call answers.

Layer by layer, so that no other layer runs twice and dropout draws what it would have drawn. A
backward pass that raises is done by the reference, since what a forward pass keeps is its own
backend's. If every backend raises, the last error comes through, and none is said to have failed:
the cause is in the call then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from rnnjit.autograd import run_layer
from rnnjit.backend import Backend
from rnnjit.dispatch import willing
from rnnjit.failures import FAILURES, replaceable
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

Found = TypeVar("Found")


class Failover:
    """Runs layers as `run_layer` does, for calls like one that `auto` has dispatched.

    Args:
        spec: of the stack.
        problem: what the calls are.
    """

    def __init__(self, spec: RNNSpec, problem: Problem) -> None:
        self._spec, self._problem = spec, problem

    def __call__(
        self,
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        needs_grad: bool,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """`(y, h_n)` of one layer, by `backend` or by one that comes after it."""

        def run(by: Backend) -> tuple[Tensor, Tensor]:
            return run_layer(by, layer, rows, x, h0, weights, needs_grad, last, rescued=True)

        try:
            return run(backend)
        except Exception as error:  # noqa: BLE001 - a backend may fail in any way
            return self.instead(backend, error, run)

    def instead(self, backend: Backend, error: Exception, run: Callable[[Backend], Found]) -> Found:
        """Have other backends do what one has failed to do.

        Args:
            backend: what raised.
            error: what it raised; it is being handled.
            run: does the work by another backend.

        Returns:
            What `run` returned for the first backend for which it did not raise.

        Raises:
            Exception: what the last backend raised, or `error` if there is no other.
        """
        failed = [(backend, error)]
        for other in self._others(backend):
            if not replaceable(failed[-1][1]):
                break
            try:
                found = run(other)
            except Exception as another:  # noqa: BLE001 - a backend may fail in any way
                failed.append((other, another))
                continue
            for culprit, cause in failed:
                FAILURES.note(culprit, cause, f"backend {other.name!r}")
            return found
        raise failed[-1][1]

    def _others(self, backend: Backend) -> Iterator[Backend]:
        return (other for other in willing(self._spec, self._problem) if other is not backend)
