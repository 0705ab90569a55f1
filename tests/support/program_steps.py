"""The functions of a program for this machine that run it step by step, called from Python."""

from __future__ import annotations

import ctypes

import torch

from rnnjit_numba.artifact import linked
from rnnjit_numba.program import STEPPING

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Steps:
    """`NAME_prepare`, `NAME_step` and the sizes of their memory, of an object file, on tensors.

    Args:
        code: the object file.
        name: prefix of its symbols.
        states: how many states the cell has.
    """

    def __init__(self, code, name, states):
        self._code = linked(code, [f"{name}_{each}" for each in STEPPING])
        kinds = (
            (ctypes.c_int32, [_POINTER] * 2),
            (ctypes.c_int32, [_INT] + [_POINTER] * (4 + states)),
            (_INT, []),
            (_INT, [_INT]),
        )
        self.prepare, self.step, prepared_bytes, self.scratch_bytes = (
            ctypes.CFUNCTYPE(result, *arguments)(address)
            for (result, arguments), address in zip(kinds, self._code.addresses, strict=True)
        )
        self.prepared_bytes = prepared_bytes()

    def run(self, x, before, width, weights, empty=None, copy=torch.clone):
        """Y `[N, width]` and the last states of x `[T, B, I]`.

        What is written is in memory of `empty(shape, dtype)`, what is read is a `copy`.
        """
        empty = empty or filled
        prepared = empty((self.prepared_bytes,), torch.uint8)
        assert self.prepare(weights.data_ptr(), prepared.data_ptr()) == 0
        prepared = copy(prepared)
        states, outputs = [empty(tuple(state.shape), state.dtype) for state in before], []
        for state, given in zip(states, before, strict=True):
            state.copy_(given)
        for row in x:
            room = empty((self.scratch_bytes(len(row)),), torch.uint8)
            y = empty((len(row), width), x.dtype)
            tensors = (prepared, copy(row), *states, y, room)
            addresses = [tensor.data_ptr() for tensor in tensors]
            assert self.step(len(row), *addresses) == 0
            outputs.append(y.clone())
        return torch.cat(outputs), tuple(states)


def filled(shape, dtype):
    """A tensor that begins with a cache line, full of NaN."""
    size = torch.Size(shape).numel() * dtype.itemsize
    room = torch.full((size + 64,), 255, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    return room[start : start + size].view(dtype).view(shape)
