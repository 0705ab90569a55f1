"""Prepares cases for modules that are called like nn.RNN: torch's own and rnnjit's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnjit.bench.arrays import Array, Arrays
from rnnjit.bench.contestants.base import Ready
from rnnjit.bench.records import Case

#: A function from the initial state to two functions: one steps over a frame `[B, I]` and returns
#: y `[B, H]`, the other returns the state `[L, B, H]`.
Stream = Callable[[Tensor], tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]]


def set_up(case: Case) -> None:
    """Set the thread count and the grad mode for the whole process, so that no call has to."""
    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(case.trains)


def module_of(case: Case, arrays: Arrays) -> nn.RNN:
    """PyTorch's own module with the weights of the case."""
    module = nn.RNN(
        case.I,
        case.H,
        case.layers,
        nonlinearity=case.nonlinearity,
        bidirectional=case.bidirectional,
        dtype=getattr(torch, case.dtype),
        device="cpu",
    )
    module.load_state_dict({name: tensor_of(value) for name, value in arrays.weights.items()})
    return module.train(case.trains)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A copy of an array, on the CPU."""
    return torch.from_numpy(array.copy())


def ready(case: Case, arrays: Arrays, module: nn.Module, stream: Stream | None = None) -> Ready:
    """Prepare a case on a module that is called like nn.RNN.

    Args:
        case: the case.
        arrays: its arrays.
        module: the module.
        stream: for streaming cases; the default calls the module on single steps and passes the
            state from call to call.
    """
    if case.mode == "streaming":
        return _streaming(arrays, stream or (lambda h0: _stream_by_calls(module, h0)))
    call = _Call(case, arrays, module)
    if case.mode == "backward":
        return Ready(call.backward(), call.results)
    return Ready(call.gradients if case.trains else call.outputs, call.results)


class _Call:
    """A call on whole sequences; if the case is packed, the input is packed in advance."""

    def __init__(self, case: Case, arrays: Arrays, module: nn.Module) -> None:
        self._module, self._case = module, case
        x, grad_y = tensor_of(arrays.x), tensor_of(arrays.grad_y)
        self._packing: tuple[Any, ...] | None = None
        if arrays.lengths is not None:
            lengths = tensor_of(arrays.lengths)
            packed = pack_padded_sequence(x, lengths)
            x, self._packing = packed.data, tuple(packed)[1:]
            grad_y = pack_padded_sequence(grad_y, lengths).data
        self._x, self._h0 = (
            tensor.requires_grad_(case.trains) for tensor in (x, tensor_of(arrays.h0))
        )
        self._names = ["x", "h0", *(name for name, _ in module.named_parameters())]
        self._leaves = (self._x, self._h0, *module.parameters())
        self._grads = (grad_y, tensor_of(arrays.grad_h_n))
        self._first = 1 if case.mode == "last state" else 0  # of the outputs that the loss is of

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Compute `(y, h_n)`; if the output is packed, y is its rows."""
        if self._packing is None:
            y, h_n = self._module(self._x, self._h0)
            return y, h_n
        packed, h_n = self._module(PackedSequence(self._x, *self._packing), self._h0)
        return packed.data, h_n

    def gradients(self) -> tuple[Tensor, ...]:
        """Compute the gradients of x, h0 and every weight."""
        return self._derived(self.outputs())

    def backward(self) -> Callable[[], object]:
        """The backward pass only, repeatable, since the graph of one forward pass is kept."""
        outputs = self.outputs()
        return lambda: self._derived(outputs, keep=True)

    def results(self) -> Mapping[str, Array]:
        """The outputs, and the gradients if the case trains, as in `Ready.results`."""
        y, h_n = self.outputs()
        found = {"y": self._padded(y), "h_n": h_n.detach().numpy()}
        if self._case.trains:
            grads = self._derived((y, h_n))
            found |= {f"grad {k}": g.numpy() for k, g in zip(self._names, grads, strict=True)}
            found["grad x"] = self._padded(grads[0])
        return found

    def _derived(self, outputs: tuple[Tensor, Tensor], keep: bool = False) -> tuple[Tensor, ...]:
        wanted, grads = outputs[self._first :], self._grads[self._first :]
        return torch.autograd.grad(wanted, self._leaves, grads, retain_graph=keep)

    def _padded(self, rows: Tensor) -> Array:
        rows = rows.detach()
        if self._packing is not None:
            packed = PackedSequence(rows, *self._packing)
            rows = pad_packed_sequence(packed, total_length=self._case.T)[0]
        return rows.numpy()


def _streaming(arrays: Arrays, stream: Stream) -> Ready:
    frames, h0 = tensor_of(arrays.x), tensor_of(arrays.h0)
    frame = frames[0].clone()
    step, _ = stream(h0)

    def results() -> Mapping[str, Array]:
        step, state = stream(h0)
        y = torch.stack([step(frame) for frame in frames])
        return {"y": y.numpy(), "h_n": state().numpy()}

    return Ready(lambda: step(frame), results)


def _stream_by_calls(
    module: nn.Module, h0: Tensor
) -> tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]:
    state = h0

    def step(frame: Tensor) -> Tensor:
        nonlocal state
        y, state = module(frame[None], state)
        last: Tensor = y[0]
        return last

    return step, lambda: state
