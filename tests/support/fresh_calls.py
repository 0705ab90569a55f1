"""Calls as a new process would make them, on kernels that take no time to compile."""

import warnings
from importlib import import_module
from itertools import count

import torch
from torch import nn

import rnnjit
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.kernel import Kind, cache_key
from rnnjit.ir import RNN_TANH

DTYPES = (torch.float32, torch.float64)
_STEPS = count(1)


class CompilingError(Exception):
    """A kernel is compiled."""


class Engine:
    """A backend that keeps object code, whose compiler can be replaced; its kernels of nn.RNN.

    Args:
        name: of the backend.

    Attributes:
        library: its module that loads kernels.
        keys: what they are kept under, by the dtype of tensors.
    """

    def __init__(self, name):
        self.name = name
        self.library = import_module(f"rnnjit_{name}.library")
        self._compiler = {"numba": "library", "tvm": "compiler"}[name]
        compilers = {"numba": ("llvmlite", "numba"), "tvm": ("apache-tvm",)}[name]
        isa, file = host_isa(), self.library.__file__
        self.keys = {
            dtype: cache_key(isa, Kind(dtype, RNN_TANH), compilers, file) for dtype in DTYPES
        }

    def load(self, dtype):
        """The kernels of this process for tensors of a dtype."""
        return self.library.library(Kind(dtype, RNN_TANH))

    def replace_compiler(self, monkeypatch, function):
        module = import_module(f"rnnjit_{self.name}.{self._compiler}")
        monkeypatch.setattr(module, "compile_kernels", function)

    def joined(self, parts):
        """Object code as it is kept."""
        return self.library._joined(parts) if self.name == "numba" else b"".join(parts)

    def split(self, content):
        return self.library._split(content) if self.name == "numba" else [content]


class Calls:
    """Makes calls with the libraries forgotten that were loaded.

    Args:
        engine: the backend.
        kernels: what its compiler gives, by the dtype of tensors.
        monkeypatch: pytest's.
    """

    def __init__(self, engine, kernels, monkeypatch):
        self.engine = engine
        self._compiled = []

        def compile_kernels(isa, *kind):
            dtype, cell, *_ = kind if len(kind) == 2 else kind[0]
            assert cell == RNN_TANH
            self._compiled.append(dtype)
            parts = kernels[dtype]
            return parts if engine.name == "numba" else parts[0]

        engine.replace_compiler(monkeypatch, compile_kernels)

    def __call__(self, dtypes=DTYPES):
        """Call in every dtype, compare with eager; which kernels were compiled, and warnings."""
        self.engine.library.library.made.clear()
        self._compiled.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for dtype in dtypes:
                self._agrees(dtype)
        assert all(warning.category is rnnjit.RNNJitWarning for warning in caught)
        return list(self._compiled), [str(warning.message) for warning in caught]

    def _agrees(self, dtype):
        torch.manual_seed(0)
        rnn = nn.RNN(7, 19).to(dtype)
        # What is remembered of a call holds its kernels: so none is like another.
        x = torch.randn(next(_STEPS), 3, 7, dtype=dtype)
        expected = nn.RNN(7, 19).double()
        expected.load_state_dict(rnn.state_dict())
        y, h_n = rnnjit.compile(rnn, backend=self.engine.name)(x)
        for ours, theirs in zip((y, h_n), expected(x.double()), strict=True):
            torch.testing.assert_close(ours, theirs.to(dtype), rtol=1e-5, atol=1e-6)
