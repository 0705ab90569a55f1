"""Protects modules that lack an attribute: compiled ones need none that eager does not read."""

import copy

import pytest
import torch
from bad_calls import H0, PACKED, H, I, X, raised, sentence
from computing import usual
from torch import nn

import rnnjit

PAIR = H0, H0
CALLS = {
    nn.RNN: {"dense": (X,), "dense, hx": (X, H0), "packed": (PACKED,), "packed, hx": (PACKED, H0)},
    nn.LSTM: {"dense": (X,), "hx": (X, PAIR), "packed": (PACKED,), "packed, hx": (PACKED, PAIR)},
    nn.GRU: {"dense": (X,), "dense, hx": (X, H0), "packed": (PACKED,), "packed, hx": (PACKED, H0)},
    nn.RNNCell: {"zeros": (X[0],), "hx": (X[0], H0[0]), "unbatched": (X[0, 0],)},
    nn.LSTMCell: {"zeros": (X[0],), "hx": (X[0], (H0[0], H0[0])), "unbatched": (X[0, 0],)},
    nn.GRUCell: {"zeros": (X[0],), "hx": (X[0], H0[0]), "unbatched": (X[0, 0],)},
}


def attributes(kind):
    """The public ones, which torch's `forward` may read, and those of our own that hold them."""
    return [name for name in vars(kind(I, H)) if not name.startswith("_")]


#: Torch reads on without checking the features.
UNCHECKED = [(nn.LSTM, "input_size", "packed"), (nn.LSTM, "input_size", "packed, hx")]
ROWS = [
    (kind, name, call)
    for kind, calls in CALLS.items()
    for name in attributes(kind)
    for call in calls
]


def modules(kind):
    torch.manual_seed(0)
    module = kind(I, H)
    return module, rnnjit.compile(module, backend=usual(kind))


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in tensors(part)]


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize(("kind", "name", "call"), ROWS, ids=str)
def test_without_an_attribute(kind, name, call, warm):
    module, fast = modules(kind)
    args = CALLS[kind][call]
    for _ in range(2 * warm):  # so that there is a short way that does not read it
        fast(*args)
    for each in (module, fast):
        delattr(each, name)
    if (kind, name, call) in UNCHECKED:
        module(*args)
        assert raised(fast, *args).match("'LSTM' object has no attribute 'input_size'")
        return
    try:
        want = module(*args)
    except AttributeError:
        eager, ours = raised(module, *args), raised(fast, *args)
        assert ours.type is eager.type
        assert sentence(eager) in str(ours.value)
    else:
        torch.testing.assert_close(tensors(fast(*args)), tensors(want))


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("call", ["zeros", "hx"])
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_without_a_weight(kind, name, call):
    cell, fast = modules(kind)
    args = CALLS[kind][call]
    fast(*args)
    for each in (cell, fast):
        delattr(each, name)
    eager, ours = raised(cell, *args), raised(fast, *args)
    assert ours.type is eager.type is AttributeError
    assert sentence(eager) in str(ours.value)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_that_lacks_all_that_torch_does_not_read(kind):
    cell, fast = modules(kind)
    args = CALLS[kind]["hx"]
    for each in (cell, fast):
        for name in ("training", "input_size", "hidden_size", "bias"):
            delattr(each, name)
    for module in (fast, copy.deepcopy(fast)):
        for _ in range(2):
            torch.testing.assert_close(module(*args), cell(*args))
