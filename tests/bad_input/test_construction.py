"""Protects `rnnjit.compile` against modules, backends and arguments that it cannot take."""

import warnings

import pytest
import torch
from bad_calls import H, I, X, expect_eager, pair
from torch import nn

import rnnjit


def scripted(make=torch.jit.script):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(nn.RNN(I, H))


REFUSED = {
    "None": (lambda: None, TypeError, "module must be a torch.nn.Module, got NoneType"),
    "a class": (lambda: nn.RNN, TypeError, "module must be a torch.nn.Module, got type"),
    "a function": (lambda: torch.tanh, TypeError, "module must be a torch.nn.Module, got builtin"),
    "a name": (lambda: "rnn", TypeError, "module must be a torch.nn.Module, got str"),
    "a list": (lambda: [nn.RNN(I, H)], TypeError, "module must be a torch.nn.Module, got list"),
    "a state_dict": (lambda: nn.RNN(I, H).state_dict(), TypeError, "got OrderedDict"),
    "nothing": (lambda: nn.Sequential(), ValueError, "contains no nn.GRU, .* Sequential has 1"),
    "scripted": (scripted, ValueError, "none of them one. Compile the model that was scripted"),
    "scripted inside": (
        lambda: nn.Sequential(scripted()),
        ValueError,
        "none of them one. Compile the model that was scripted",
    ),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_are_none(name, inplace):
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        rnnjit.compile(make(), inplace=inplace)


BACKENDS = {
    "None": (None, TypeError, "backend must be 'auto', the name of .* got NoneType"),
    "number": (1, TypeError, "backend must be .* got int"),
    "bytes": (b"numba", TypeError, "backend must be .* got bytes"),
    "list": (["numba"], TypeError, "backend must be .* got list"),
    "class": (rnnjit.Backend, TypeError, "backend must be .* a rnnjit.Backend, got ABCMeta"),
    "device": (torch.device("cpu"), TypeError, "backend must be .* got device"),
    "unknown": ("jax", ValueError, "backend 'jax' is not installed; expected one of 'auto', .*'$"),
    "empty": ("", ValueError, "backend '' is not installed; expected one of 'auto', .*'$"),
    "typo": ("nunba", ValueError, "backend 'nunba' is not installed; .*: did you mean 'numba'?"),
    "case": ("Numba", ValueError, "backend 'Numba' is not installed; .*: did you mean 'numba'?"),
    "space": ("eager ", ValueError, "backend 'eager ' is not installed; .* did you mean 'eager'?"),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_that_are_none(name):
    backend, error, message = BACKENDS[name]
    rnn, fast = pair()
    with pytest.raises(error, match=message):
        rnnjit.compile(rnn, backend=backend)
    with pytest.raises(error, match=message):
        rnnjit.compile(rnn, backend=backend, inplace=True)
    assert type(rnn) is nn.RNN
    with pytest.raises(error, match=message):
        fast.backend = backend
    assert fast.backend == "auto"
    expect_eager(rnn, fast)


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        ((), {}, "missing 1 required positional argument: 'module'"),
        ((nn.RNN(I, H), "numba"), {}, "takes 1 positional argument but 2 were given"),
        ((nn.RNN(I, H),), {"backnd": "numba"}, "unexpected keyword argument 'backnd'"),
    ],
)
def test_wrong_arguments_of_compile(args, keywords, message):
    with pytest.raises(TypeError, match=message):
        rnnjit.compile(*args, **keywords)


@pytest.mark.parametrize("cls", [rnnjit.CompiledRNN, rnnjit.CompiledRNNCell])
def test_compiled_modules_are_not_constructed_from_modules(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__} .* call rnnjit.compile\(module\)"):
        cls(nn.RNN(I, H))
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        cls()


class Unfinished(nn.RNN):
    """Forgets to call `super().__init__()`."""

    def __init__(self):
        nn.Module.__init__(self)


def test_a_module_that_was_never_finished_raises_as_eager():
    rnn = Unfinished()
    for module in (rnn, rnnjit.compile(rnn)):
        with pytest.raises(AttributeError, match="has no attribute"):
            module(X)
