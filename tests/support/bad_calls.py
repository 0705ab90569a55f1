"""Runs malformed calls: what eager raises for them, what has to be said, and what comes after."""

from collections.abc import Callable
from re import sub
from typing import NamedTuple

import pytest
import torch
from on_cpu import ON_CPU
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit

T, B, I, H = 3, 2, 4, 5
X, H0 = torch.randn(T, B, I), torch.randn(1, B, H)
PACKED = PackedSequence(torch.randn(3, I), torch.tensor([2, 1]))
#: "auto", and every backend that runs here on the CPU.
BACKENDS = [
    "auto",
    *ON_CPU,
]
SETTINGS = (
    *("input_size", "hidden_size", "num_layers", "mode", "bias", "batch_first", "dropout"),
    *("bidirectional", "training"),
)


class Row(NamedTuple):
    """A malformed call.

    Attributes:
        call: makes it, of a module.
        message: a regular expression for what has to be said of it.
        raises: the exception, where eager accepts the call and we do not.
        asked: whether torch can be asked for its sentence.
    """

    call: Callable[[nn.Module], object]
    message: str
    raises: type[Exception] | None = None
    asked: bool = True


def pair(backend="auto", **options):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, **options)
    return rnn, rnnjit.compile(rnn, backend=backend)


def raised(call, *args):
    """What a call raises; it has to raise something."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is what is compared
        call(*args)
    return caught


def sentence(caught):
    """What an exception says, without a method's class and the list of kernels that may follow."""
    return sub(r"^\w+\.forward\(\)", "", str(caught.value).strip().partition("\n\n")[0])


def expect_refusal(row, rnn, fast):
    """The compiled module raises what eager does, in its words and ours, or what the row says."""
    caught = raised(row.call, fast)
    if row.raises is None:
        theirs = raised(row.call, rnn)
        assert caught.type is theirs.type
        assert not row.asked or sentence(theirs) in str(caught.value)
    else:
        row.call(rnn)
        assert caught.type is row.raises
    assert caught.match(row.message)


def expect_eager(rnn, fast):
    """Good calls give eager's values and gradients: dense, dense once more, and packed."""
    for given in ((X, H0), (X, H0), (PACKED,)):
        with torch.no_grad():
            same(fast(*given), rnn(*given))
    grads = []
    for module in (rnn, fast):
        x = X.clone().requires_grad_()
        y, h_n = module(x)
        grads.append(torch.autograd.grad(y.sum() + h_n.square().sum(), [x, *module.parameters()]))
    torch.testing.assert_close(grads[1], grads[0])


def same(got, want):
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(getattr(mine, "data", mine), getattr(theirs, "data", theirs))


def settings(module):
    """What `restore` puts back after a row that spoils the module itself."""
    return {**{name: vars(module)[name] for name in SETTINGS}, **module._parameters}


def restore(module, kept):
    for name, value in kept.items():
        setattr(module, name, value)
