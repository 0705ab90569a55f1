"""Prepares cases for modules that are called like nn.RNN: torch's own and rnnjit's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnjit.bench.arrays import Array, Arrays, storage
from rnnjit.bench.contestants.base import Ready
from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Case

#: The states as a module takes and gives them: a tensor, or a tuple of nn.LSTM's h and c.
State = Tensor | tuple[Tensor, ...]
#: A function from the initial states, each `[L, B, P or H]`, to two functions: one steps over a
#: frame `[B, I]` and returns y `[B, P or H]`, the other returns the states.
Stream = Callable[[State], tuple[Callable[[Tensor], Tensor], Callable[[], State]]]


def set_up(case: Case) -> None:
    """Set the thread count and the grad mode for the whole process, so that no call has to."""
    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(case.trains)


def empty(case: Case, device: str = "cpu") -> nn.Module:
    """PyTorch's own module of the case with other weights: a layer, or a cell if `as_cell`."""
    kind = kind_of(case)
    options: dict[str, Any] = {"dtype": getattr(torch, storage(case.dtype)), "device": device}
    if kind.nonlinear:
        options["nonlinearity"] = case.nonlinearity
    if case.as_cell:
        cell: nn.Module = getattr(nn, f"{kind.layer}Cell")(case.I, case.H, **options)
        return cell
    if case.proj_size:
        options["proj_size"] = case.proj_size
    layer: nn.Module = getattr(nn, kind.layer)(
        case.I, case.H, case.layers, bidirectional=case.bidirectional, **options
    )
    return layer


def module_of(case: Case, arrays: Arrays) -> nn.Module:
    """PyTorch's own module with the weights of the case."""
    module = empty(case)
    suffix = "_l0" if case.as_cell else ""
    weights = {name.removesuffix(suffix): value for name, value in arrays.weights.items()}
    module.load_state_dict({name: tensor_of(value) for name, value in weights.items()})
    return module.train(case.trains)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A copy of an array, on the CPU; one of uint16 holds the bits of bfloat16."""
    copied = torch.from_numpy(array.copy())
    return copied.view(torch.bfloat16) if array.dtype == np.uint16 else copied


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The reverse of `tensor_of`, without a copy."""
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


def as_state(states: tuple[Tensor, ...]) -> State:
    """The states as a module takes them."""
    return states if len(states) > 1 else states[0]


def as_tuple(state: State) -> tuple[Tensor, ...]:
    """The reverse of `as_state`."""
    return state if isinstance(state, tuple) else (state,)


def ready(case: Case, arrays: Arrays, module: nn.Module, stream: Stream | None = None) -> Ready:
    """Prepare a case on a module that is called like torch's own.

    Args:
        case: the case.
        arrays: its arrays.
        module: the module; a cell if the case is `as_cell`.
        stream: for streaming cases; the default calls the module on single steps and passes the
            state from call to call.
    """
    if case.mode == "streaming":
        return _streaming(case, arrays, stream or (lambda hx: _stream_by_calls(module, hx)))
    calls = _CellCall(arrays, module) if case.as_cell else _LayerCall(case, arrays, module)
    call = _Call(case, arrays, module, calls)
    if case.mode == "backward":
        return Ready(call.backward(), call.results)
    return Ready(call.gradients if case.trains else calls.outputs, call.results)


class _Calls(Protocol):
    """The tensors of a call, in the shapes in which the module takes them.

    Attributes:
        x: the input.
        hx: the initial states.
        grads: the gradients of what `outputs` returns.
    """

    x: Tensor
    hx: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]

    def outputs(self) -> tuple[Tensor, ...]:
        """Call the module, and return y and the last states."""

    def padded(self, rows: Tensor) -> Tensor:
        """Rows of y or x as `[T, B, features]`."""

    def stacked(self, state: Tensor) -> Tensor:
        """A state as `[L*D, B, features]`."""


class _LayerCall:
    """A call on whole sequences; if the case is packed, the input is packed in advance."""

    def __init__(self, case: Case, arrays: Arrays, module: nn.Module) -> None:
        self._module, self._T = module, case.T
        self.x, grad_y = tensor_of(arrays.x), tensor_of(arrays.grad_y)
        self._packing: tuple[Any, ...] | None = None
        if arrays.lengths is not None:
            lengths = tensor_of(arrays.lengths)
            packed = pack_padded_sequence(self.x, lengths)
            self.x, self._packing = packed.data, tuple(packed)[1:]
            grad_y = pack_padded_sequence(grad_y, lengths).data
        self.hx = tuple(map(tensor_of, arrays.hx))
        self.grads = (grad_y, *map(tensor_of, arrays.grad_hn))
        self._state = as_state(self.hx)

    def outputs(self) -> tuple[Tensor, ...]:
        """If the output is packed, y is its rows."""
        if self._packing is None:
            y, last = self._module(self.x, self._state)
        else:
            packed, last = self._module(PackedSequence(self.x, *self._packing), self._state)
            y = packed.data
        return (y, *as_tuple(last))

    def padded(self, rows: Tensor) -> Tensor:
        """Zeros after the end of a sequence."""
        if self._packing is None:
            return rows
        return pad_packed_sequence(PackedSequence(rows, *self._packing), total_length=self._T)[0]

    def stacked(self, state: Tensor) -> Tensor:
        """As it is."""
        return state


class _CellCall:
    """A call of a module of one step; y is its first state."""

    def __init__(self, arrays: Arrays, module: nn.Module) -> None:
        self._module = module
        self.x = tensor_of(arrays.x[0])
        self.hx = tuple(tensor_of(state[0]) for state in arrays.hx)
        grad_h_n, *others = arrays.grad_hn
        of_h = tensor_of(grad_h_n[0]) + tensor_of(arrays.grad_y[0])
        self.grads = (of_h, *(tensor_of(grad[0]) for grad in others))
        self._state = as_state(self.hx)

    def outputs(self) -> tuple[Tensor, ...]:
        """The states after the step, of which the first is y as well."""
        return as_tuple(self._module(self.x, self._state))

    def padded(self, rows: Tensor) -> Tensor:
        """As one step."""
        return rows[None]

    def stacked(self, state: Tensor) -> Tensor:
        """As one layer."""
        return state[None]


class _Call:
    """The passes of a call, and its results by name."""

    def __init__(self, case: Case, arrays: Arrays, module: nn.Module, calls: _Calls) -> None:
        self._calls, self._case = calls, case
        self._states = kind_of(case).states
        names = [f"grad {name}" for name in ("x", *(f"{state}0" for state in self._states))]
        self._names = [*names, *(f"grad {name}" for name in arrays.weights)]
        self._leaves = (calls.x, *calls.hx, *module.parameters())
        for leaf in self._leaves[: 1 + len(calls.hx)]:
            leaf.requires_grad_(case.trains)
        # A loss on the last state is of h_n alone, which a cell gives as its only output.
        h_n = slice(0, 1) if case.as_cell else slice(1, 2)
        self._of = h_n if case.mode == "last state" else slice(None)

    def gradients(self) -> tuple[Tensor, ...]:
        """Compute the gradients of x, the initial states and every weight."""
        return self._derived(self._calls.outputs())

    def backward(self) -> Callable[[], object]:
        """The backward pass only, repeatable, since the graph of one forward pass is kept."""
        outputs = self._calls.outputs()
        return lambda: self._derived(outputs, keep=True)

    def results(self) -> Mapping[str, Array]:
        """The outputs, and the gradients if the case trains, as in `Ready.results`."""
        calls = self._calls
        outputs = calls.outputs()
        y, last = outputs[0].detach(), outputs[-len(self._states) :]
        found = {"y": calls.padded(y)}
        for name, state in zip(self._states, last, strict=True):
            found[f"{name}_n"] = calls.stacked(state.detach())
        if self._case.trains:
            grads = self._derived(outputs)
            found |= dict(zip(self._names, grads, strict=True))
            found["grad x"] = calls.padded(grads[0])
            for name in self._states:
                found[f"grad {name}0"] = calls.stacked(found[f"grad {name}0"])
        return {name: array_of(value) for name, value in found.items()}

    def _derived(self, outputs: tuple[Tensor, ...], keep: bool = False) -> tuple[Tensor, ...]:
        wanted, grads = outputs[self._of], self._calls.grads[self._of]
        return torch.autograd.grad(wanted, self._leaves, grads, retain_graph=keep)


def _streaming(case: Case, arrays: Arrays, stream: Stream) -> Ready:
    frames, hx = tensor_of(arrays.x), as_state(tuple(map(tensor_of, arrays.hx)))
    frame = frames[0].clone()
    step, _ = stream(hx)

    def results() -> Mapping[str, Array]:
        step, state = stream(hx)
        y = torch.stack([step(frame) for frame in frames])
        last = zip(kind_of(case).states, as_tuple(state()), strict=True)
        return {"y": array_of(y), **{f"{name}_n": array_of(value) for name, value in last}}

    return Ready(lambda: step(frame), results)


def _stream_by_calls(
    module: nn.Module, hx: State
) -> tuple[Callable[[Tensor], Tensor], Callable[[], State]]:
    state = hx

    def step(frame: Tensor) -> Tensor:
        nonlocal state
        y, state = module(frame[None], state)
        last: Tensor = y[0]
        return last

    return step, lambda: state
