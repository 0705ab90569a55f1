"""`rnnjit.Stream`: runs a stack of layers step by step, for input that arrives frame by frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend, States
from rnnjit.dispatch.blame import blame
from rnnjit.dispatch.choice import choose, fallback_for, special_context
from rnnjit.dispatch.fallback import GENERATION, RAISE
from rnnjit.dispatch.registry import resolve
from rnnjit.execution.stack import run_stack
from rnnjit.frontend.arguments import as_hx, check_weights
from rnnjit.frontend.capture import capture, weight_names, weights_of
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.plain_layer import check_plain
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread
from rnnjit.runtime.torch_private import (
    HAS_GUARDS,
    UNSEEN,
    dispatch_mode,
    never_traced,
    parameters_of,
    tensor_guards,
    tensors_of,
)
from rnnjit.spec import Problem, Rows


class Stream:
    """The state of a batch of sequences; `step` advances it by one step, in evaluation mode.

    With the numba backend, a step allocates only its output, and y is bit-identical to the result
    of one call on the whole sequence; with other backends it is equal up to rounding. Every step
    reads the current weights: a module may be trained while its streams run. Only one thread at a
    time may use a stream (`step` refuses a second), and a stream records no gradients.

    A step does not call the module: hooks on it do not run.

    Args:
        module: an nn.RNN, nn.LSTM or nn.GRU, or a compiled one, unidirectional, that computes what
            torch's own does; what it gets to override after this is not seen.
        batch_size: B, the number of sequences.
        backend: as in `rnnjit.compile`; None for the backend of a compiled module, else "auto".

    Raises:
        TypeError: `module` is not such a layer, or `batch_size` is not an int.
        ValueError: `module` is bidirectional, has its own `forward`, assigned `_flat_weights` or an
            override of what torch's `forward` uses, or `batch_size` is less than 1.
        UnsupportedError: the backend that the user named declines.

    Example:
        >>> stream = Stream(torch.nn.RNN(8, 16, num_layers=2))
        >>> stream.step(torch.zeros(1, 8)).shape
        torch.Size([1, 16])
    """

    def __init__(
        self, module: nn.Module, batch_size: int = 1, backend: str | Backend | None = None
    ) -> None:
        check_plain(module, "a stream")
        spec = capture(module)
        if spec.bidirectional:
            raise ValueError(
                "module must be of one direction: a backward one needs the end of a sequence first"
            )
        if not isinstance(batch_size, int) or isinstance(batch_size, bool):
            raise TypeError(f"batch_size must be an int, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if backend is None:
            backend = module.backend if isinstance(module, CompiledBase) else "auto"
        self._module, self._spec, self._wanted = module, spec, resolve(backend)
        self._batch = batch_size
        # The running step: a second one must not overwrite buffers that a kernel still reads. The
        # key is the process, so that a forked child ignores a step of its parent.
        self._amid: dict[int, object] = {}
        self._names = weight_names(module)
        self._held = tensors_of if spec.quantized else parameters_of
        self._weights_of = itemgetter(*self._names)
        weights = weights_of(module)
        shapes, like = spec.state_shapes(batch_size), weights[spec.typed_weight].detach()
        # The current states, and the buffers to which a step writes the new ones.
        self._states: States = tuple([like.new_zeros(shape) for shape in shapes])
        self._spare: States = tuple([like.new_empty(shape) for shape in shapes])
        self._y_shape = (batch_size, spec.proj_size or spec.hidden_size)
        self._prepare(like.new_empty(batch_size, spec.input_size), weights)

    @property
    def backend(self) -> str:
        """Name of the backend that runs the steps."""
        return self._backend.name

    @property
    def state(self) -> Tensor | States:
        """A copy of the state, `[L, B, P or H]`; assigning a tensor of that shape sets it.

        If the cell has several states (nn.LSTM: h and c), it is a tuple of them; a list can be
        assigned, too.

        Raises:
            TypeError: (assigning) not a Tensor, or not a tuple or list with one Tensor for each
                state.
            ValueError: (assigning) a wrong shape, or a dtype that cannot be converted.
        """
        with _one_thread_if_forked():
            dtype = self._states[0].dtype
            return as_hx(tuple([state.to(dtype, copy=True) for state in self._states]))

    @state.setter
    def state(self, value: Tensor | States | list[Tensor]) -> None:
        count = len(self._states)
        values = (value,) if count == 1 else value
        if count > 1 and (not isinstance(values, (tuple, list)) or len(values) != count):
            raise TypeError(f"state must be a tuple of {count} Tensors, got {type(value).__name__}")
        for given, state in zip(values, self._states, strict=True):
            _check_state(given, state)
        with torch.no_grad(), _one_thread_if_forked():
            for given, state in zip(values, self._states, strict=True):
                state.copy_(given)

    def reset(self, which: Tensor | None = None) -> None:
        """Zero all states of all sequences, or of those that `which` (boolean, `[B]`) selects.

        Raises:
            TypeError: `which` is not a Tensor.
            ValueError: `which` has a wrong shape or dtype, or is on another device.
        """
        if which is None:
            with _one_thread_if_forked():
                for state in self._states:
                    state.zero_()
            return
        if not isinstance(which, Tensor):
            raise TypeError(f"which must be a boolean Tensor, got {type(which).__name__}")
        if which.shape != (self._batch,) or which.dtype is not torch.bool:
            raise ValueError(
                f"which must be boolean, of shape [{self._batch}], got {which.dtype} "
                f"{list(which.shape)}"
            )
        if which.device != self._states[0].device:
            raise ValueError(f"which must be on {self._states[0].device}, got {which.device}")
        with _one_thread_if_forked():
            for state in self._states:
                state[:, which] = 0

    @never_traced
    def step(self, x: Tensor) -> Tensor:
        """Advance the state by one frame.

        Args:
            x: `[B, I]`, of the weights' dtype and device.

        Returns:
            The last layer's new output `[B, P or H]`, newly allocated.

        Raises:
            AttributeError: x is not a tensor.
            TypeError: x or a weight is a tensor subclass, or autocast, a transform or a dispatch
                mode is active.
            ValueError: x has a wrong shape or dtype.
            RuntimeError: x is on another device, a weight does not fit the module, the module's
                configuration has changed, or another step of this stream is running.
        """
        if FORK.forked and needs_one_thread():
            with one_thread():
                return self.step(x)
        mine, amid, process = object(), self._amid, os.getpid()
        try:
            if amid.setdefault(process, mine) is not mine:
                raise RuntimeError(
                    "a step of this stream is under way, on another thread or in what a signal "
                    "handler interrupted: make a stream for each thread, or let them take turns"
                )
            return self._step(x)
        finally:
            # No function is called here, so that no signal handler can run in between.
            if process in amid and amid[process] is mine:
                del amid[process]

    def _step(self, x: Tensor) -> Tensor:
        module = self._module
        try:
            weights = self._weights_of(self._held(module))
        except KeyError:
            weights = weights_of(module)
        if (
            getattr(x, "is_nested", True)  # torch's guards crash on nested tensors
            or dispatch_mode()  # under which a new tensor may have no memory
            or not self._alike(x, *weights)
            or module.__dict__["mode"] is not self._mode
            or self._surroundings != (GENERATION.now, torch.get_num_threads(), FORK.forked)
        ):
            x, weights = self._prepare(x, weights)
        if self._stepper is None:
            return self._step_by_call(self._backend, x, weights)
        before, after = self._states, self._spare
        y = torch.empty(self._y_shape, dtype=x.dtype, device=x.device)
        try:
            self._stepper(x, before, after, y, weights)
        except Exception as error:  # noqa: BLE001 - a backend may fail in any way
            blame(error, recorded=False)

            def work(other: Backend) -> Tensor:
                return self._step_by_call(other, x, weights)

            return self._fallback.instead(self._backend, error, work)
        self._states, self._spare = after, before
        return y

    def _step_by_call(self, backend: Backend, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        rows, states = Rows(1, self._batch, self._batch), self._states
        carried = backend.carried_dtype(x.dtype)
        states = (states[0], *[state.to(carried) for state in states[1:]])
        with torch.no_grad():
            y, h_n = run_stack(
                *(backend, self._spec, rows, x, states, weights),
                training=False,
                needs_grad=False,
                fallback=self._fallback,
            )
        self._states = h_n
        return y

    def _prepare(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Check a step that differs from the last one, and choose its backend."""
        spec = capture(self._module)
        if spec != self._spec:
            raise RuntimeError(
                "the module's configuration was changed under a stream: make a new one"
            )
        check_weights(spec, weight_names(self._module), weights)
        _check_frame(x, (self._batch, spec.input_size), weights[spec.typed_weight])
        special = special_context(x, *weights)
        if special is not None and not UNSEEN:
            raise TypeError(f"a stream steps over plain tensors, outside of transforms: {special}")
        x, weights = x.contiguous(), tuple([weight.contiguous() for weight in weights])
        kind, where = x.device.type, x.get_device()
        problem = Problem(x.dtype, kind, 1, self._batch, self._batch, False, False, where)
        if special is None:
            self._backend = choose(spec, problem, self._wanted)
            self._fallback = fallback_for(spec, problem, self._wanted)
        else:
            self._backend, self._fallback = ReferenceBackend(), RAISE
        self._stepper = self._backend.stepper(spec, x.dtype, self._batch)
        carried = self._backend.carried_dtype(x.dtype)
        dtypes = (x.dtype, *[carried] * (len(self._states) - 1))
        self._states, self._spare = (
            tuple([state.to(x.device, to) for state, to in zip(states, dtypes, strict=True)])
            for states in (self._states, self._spare)
        )
        self._alike: Callable[..., bool] = lambda *tensors: False
        if HAS_GUARDS:
            self._alike = tensor_guards((x, *weights))
        self._mode = self._module.mode
        self._surroundings = GENERATION.now, torch.get_num_threads(), FORK.forked
        return x, weights


def _check_state(value: Any, state: Tensor) -> None:
    """Check a tensor that is to be copied into a stream's state."""
    if not isinstance(value, Tensor):
        raise TypeError(f"state must be a Tensor, got {type(value).__name__}")
    if value.shape != state.shape:
        raise ValueError(f"state must have shape {list(state.shape)}, got {list(value.shape)}")
    if value.is_meta or value.layout is not torch.strided:
        raise ValueError(
            f"state must be a dense tensor with values, got {value.layout} on {value.device}"
        )
    if not torch.can_cast(value.dtype, state.dtype):
        raise ValueError(f"state must be {state.dtype}, got {value.dtype}")


def _one_thread_if_forked() -> AbstractContextManager[None]:
    return one_thread() if FORK.forked else nullcontext()


def _check_frame(x: Any, shape: tuple[int, int], weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise AttributeError(f"x must be a Tensor, got {type(x).__name__}")
    if x.is_nested:
        raise ValueError("x must be a dense tensor, got a nested one")
    if x.shape != shape:
        raise ValueError(f"x must have shape {list(shape)}, got {list(x.shape)}")
    if x.dtype is not weight.dtype:
        raise ValueError(f"x is {x.dtype} but the weights are {weight.dtype}")
    if x.device != weight.device:
        raise RuntimeError(f"x is on {x.device} but the weights are on {weight.device}")
