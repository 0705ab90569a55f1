"""Malformed calls raise what eager raises, with a clearer message, and leave the module usable."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit

T, B, I, H = 3, 2, 4, 5
X, H0 = torch.randn(T, B, I), torch.randn(1, B, H)
I64 = torch.int64


def packed(sizes, rows=None, dtype=I64, data=None, **indices):
    data = torch.randn(sum(sizes) if rows is None else rows, I) if data is None else data
    return PackedSequence(data, torch.tensor(sizes, dtype=dtype), **indices)


SWAPPED = {"sorted_indices": torch.tensor([1, 0]), "unsorted_indices": torch.tensor([1, 0])}

BAD_CALLS = {
    "0-D": ((torch.tensor(1.0),), r"input must be 2-D .* or 3-D .* got 0-D: shape \[\]"),
    "1-D": ((torch.zeros(4),), r"input must be 2-D .* got 1-D: shape \[4\]"),
    "4-D": ((torch.zeros(3, 2, 4, 1),), "input must be 2-D .* got 4-D"),
    "5-D": ((torch.zeros(3, 2, 4, 1, 1),), "input must be 2-D .* got 5-D"),
    "features": ((torch.zeros(T, B, 7),), r"input_size=4 .* got 7: shape \[3, 2, 7\]"),
    "features, unbatched": ((torch.zeros(T, 7),), r"input_size=4 .* got 7: shape \[3, 7\]"),
    "float64": ((X.double(),), "RNN input dtype .torch.float64. does not match weight dtype"),
    "float16": ((X.half(),), "RNN input dtype .torch.float16. does not match weight dtype"),
    "int64": ((torch.ones(T, B, I, dtype=I64),), "RNN input dtype .torch.int64. does not match"),
    "bool": (
        (torch.ones(T, B, I, dtype=torch.bool),),
        "RNN input dtype .torch.bool. does not match",
    ),
    "complex": ((X.to(torch.complex64),), "RNN input dtype .torch.complex64. does not match"),
    "list": (([[1.0]],), "input must be a Tensor or a PackedSequence, got list"),
    "None": ((None,), "input must be a Tensor .* got NoneType"),
    "numpy": ((X.numpy(),), "input must be a Tensor .* got ndarray"),
    "str": (("x",), "input must be a Tensor .* got str"),
    "tuple": (((X, X),), "input must be a Tensor .* got tuple"),
    "no time steps": ((torch.zeros(0, B, I),), r"at least one time step.* shape \[0, 2, 4\]"),
    "no time steps, unbatched": ((torch.zeros(0, I),), "at least one time step"),
    "no time steps, no batch": ((torch.zeros(0, 0, I),), "at least one time step"),
    "input on meta": ((X.to("meta"),), "input is on meta but the weights are on cpu"),
    "sparse": ((X.to_sparse(),), "sparse"),
    "hx list": ((X, [1.0]), "hx must be a Tensor or None, got list"),
    "hx str": ((X, "h"), "hx must be a Tensor or None, got str"),
    "hx numpy": ((X, H0.numpy()), "hx must be a Tensor or None, got ndarray"),
    "hx tuple": ((X, (H0, H0)), "hx must be a Tensor or None, got tuple"),
    "hx 0-D": ((X, torch.tensor(1.0)), "hx must be 3-D like the batched input, got 0-D"),
    "hx 1-D": ((X, torch.zeros(H)), "hx must be 3-D like the batched input, got 1-D"),
    "hx 2-D": ((X, torch.zeros(1, H)), "hx must be 3-D like the batched input, got 2-D"),
    "hx 4-D": ((X, torch.zeros(1, B, H, 1)), "hx must be 3-D like the batched input, got 4-D"),
    "hx 3-D, unbatched": ((X[0], torch.zeros(1, 1, H)), "hx must be 2-D like the unbatched input"),
    "hx batch": ((X, torch.zeros(1, 3, H)), r"hx must have shape \[1, 2, 5\].* got \[1, 3, 5\]"),
    "hx hidden": ((X, torch.zeros(1, B, 6)), r"hx must have shape \[1, 2, 5\].* got \[1, 2, 6\]"),
    "hx layers": ((X, torch.zeros(2, B, H)), r"hx must have shape \[1, 2, 5\].* got \[2, 2, 5\]"),
    "hx hidden, unbatched": ((X[:, 0], torch.zeros(1, 6)), r"\[1, 5\].* got \[1, 6\]"),
    "hx float64": ((X, H0.double()), r"hx is torch.float64 but the weights are torch.float32"),
    "hx int64": ((X, H0.long()), "hx is torch.int64 but the weights are torch.float32"),
    "hx on meta": ((X, H0.to("meta")), "hx is on meta but the weights are on cpu"),
    "packed, empty": ((packed([]),), "PackedSequence without time steps"),
    "packed, growing": ((packed([1, 2]),), r"must never grow .* got \[1, 2\]"),
    "packed, negative": ((packed([2, -1], 4),), r"nor be negative, got \[2, -1\]"),
    "packed, all negative": ((packed([-1], 4),), "nor be negative"),
    "packed, too many rows": ((packed([2, 2], 3),), "adds up to 4 rows, but input.data has 3"),
    "packed, int32": ((packed([2, 1], dtype=torch.int32),), "1-D and torch.int64, got 1-D torch.i"),
    "packed, float": ((packed([2, 1], dtype=torch.float32),), "batch_sizes must be .* 1-D torch.f"),
    "packed, float, hx": ((packed([2, 1], dtype=torch.float32), H0), "batch_sizes must be .* 1-D"),
    "packed, 2-D sizes": ((packed([[2, 1]], 3),), "batch_sizes must be 1-D .* got 2-D"),
    "packed, 0-D sizes": ((packed(2, 3),), "batch_sizes must be 1-D, got 0-D"),
    "packed, features": ((packed([2, 1], data=torch.zeros(3, 5)),), "input_size=4 .* got 5"),
    "packed, 3-D": ((packed([2, 1], data=torch.zeros(3, 1, 4)),), "input.data must be 2-D, got 3"),
    "packed, 1-D": ((packed([2, 1], data=torch.zeros(4)),), "input.data must be 2-D, got 1-D"),
    "packed, float64": (
        (packed([2, 1], data=torch.zeros(3, I).double()),),
        "RNN input dtype .torch.float64. does not match",
    ),
    "packed, data no tensor": ((packed([2, 1], data=[1.0]),), "input.data must be .* got list"),
    "packed, hx list": ((packed([2, 1]), [1.0]), "hx must be a Tensor or None, got list"),
    "packed, hx batch": ((packed([2, 1]), torch.zeros(1, 3, H)), r"hx must have shape \[1, 2, 5\]"),
    "packed, hx 2-D": ((packed([2, 1]), torch.zeros(1, H)), r"hx must have shape \[1, 2, 5\]"),
    "packed, hx float64": ((packed([2, 1]), H0.double()), "hx is torch.float64"),
    "packed, hx too small to sort": (
        (packed([2, 1], **SWAPPED), torch.zeros(1, 1, H)),
        r"hx of shape \[1, 1, 5\] cannot be put in the order of input.sorted_indices",
    ),
    "packed, hx too flat to sort": (
        (packed([2, 1], **SWAPPED), torch.zeros(H)),
        r"hx of shape \[5\] cannot be put in the order of input.sorted_indices",
    ),
    "no arguments": ((), "missing 1 required positional argument: 'input'"),
    "too many arguments": ((X, None, None), "takes from 2 to 3 positional arguments"),
}

BAD_WEIGHTS = {
    "w_hh columns": ("weight_hh_l0", torch.zeros(H, 6), r"weight_hh_l0 must have shape \[5, 5\]"),
    "w_hh square": ("weight_hh_l0", torch.zeros(6, 6), r"weight_hh_l0 must .* got \[6, 6\]"),
    "w_ih columns": (
        "weight_ih_l0",
        torch.zeros(H, 3),
        r"weight_ih_l0 must .* \[5, 4\], got \[5, 3",
    ),
    "w_ih rows": ("weight_ih_l0", torch.zeros(6, I), r"weight_ih_l0 must .* \[5, 4\], got \[6, 4"),
    "w_ih 1-D": ("weight_ih_l0", torch.zeros(20), r"weight_ih_l0 must .* got \[20\]"),
    "bias": ("bias_ih_l0", torch.zeros(6), r"bias_ih_l0 must have shape \[5\], got \[6\]"),
    "w_hh float64": (
        "weight_hh_l0",
        torch.zeros(H, H).double(),
        "must be torch.float32 like weight",
    ),
    "bias float64": ("bias_hh_l0", torch.zeros(H).double(), "bias_hh_l0 must be torch.float32"),
    "w_ih float64": (
        "weight_ih_l0",
        torch.zeros(H, I).double(),
        "RNN input dtype .torch.float32. does not match",
    ),
    "w_hh on meta": ("weight_hh_l0", torch.zeros(H, H, device="meta"), "weight_hh_l0 is on meta"),
    "w_ih None": ("weight_ih_l0", None, "weight_ih_l0 must be a Tensor, got NoneType"),
    "w_hh None": ("weight_hh_l0", None, "weight_hh_l0 must be a Tensor, got NoneType"),
    "bias None": ("bias_hh_l0", None, "bias_hh_l0 must be a Tensor, got NoneType"),
}


def pair():
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    return rnn, rnnjit.compile(rnn)


def raised(module, args):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is what is compared
        module(*args)
    return caught


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_raise_what_eager_raises(name):
    args, message = BAD_CALLS[name]
    rnn, fast = pair()
    expected = raised(rnn, args).type
    caught = raised(fast, args)
    assert caught.type is expected
    assert caught.match(message)
    torch.testing.assert_close(fast(X, H0), rnn(X, H0))


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_raise_and_good_ones_work_again(name):
    attribute, value, message = BAD_WEIGHTS[name]
    rnn, fast = pair()
    kept = getattr(rnn, attribute)
    for module in (rnn, fast):
        setattr(module, attribute, value if value is None else nn.Parameter(value))
    caught = raised(fast, (X,))
    assert caught.type is raised(rnn, (X,)).type
    assert caught.match(message)
    for module in (rnn, fast):
        setattr(module, attribute, kept)
    torch.testing.assert_close(fast(X), rnn(X))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("num_layers", 2, "the module has 4 weights, but its configuration needs 8"),
        ("bias", False, "the module has 4 weights, but its configuration needs 2"),
        ("bidirectional", True, "the module has 4 weights, but its configuration needs 8"),
        ("hidden_size", 6, r"weight_ih_l0 must have shape \[6, 4\], got \[5, 4\]"),
    ],
)
def test_a_configuration_that_left_its_weights_raises_as_eager(attribute, value, message):
    rnn, fast = pair()
    for module in (rnn, fast):
        setattr(module, attribute, value)
    caught = raised(fast, (X,))
    assert caught.type is raised(rnn, (X,)).type
    assert caught.match(message)


@pytest.mark.parametrize("dropout", [2.0, -1.0])
def test_a_wrong_dropout_raises_as_eager(dropout):
    rnn = nn.RNN(I, H, 2)
    fast = rnnjit.compile(rnn)
    for module in (rnn, fast):
        module.dropout = dropout
    caught = raised(fast, (X,))
    assert caught.type is raised(rnn, (X,)).type
    assert caught.match("dropout probability has to be between 0 and 1")


def test_a_hole_in_the_batch_sizes_is_refused_where_eager_drops_a_row():
    rnn, fast = pair()
    hole = packed([2, 0, 1])
    assert rnn(hole)[0].data.shape[0] == 2
    with pytest.raises(RuntimeError, match=r"must never grow .* got \[2, 0, 1\]"):
        fast(hole)


def test_long_batch_sizes_are_shown_in_part():
    _, fast = pair()
    with pytest.raises(RuntimeError, match=r"got \[1, 1, 1, 1, 1, 1, 1, 2, ...\]"):
        fast(packed([1] * 7 + [2] * 5))


def test_nan_and_inf_are_not_bad_input():
    rnn, fast = pair()
    x = X.clone()
    x[1, 0, 0], x[1, 1, 0] = np.nan, np.inf
    torch.testing.assert_close(fast(x), rnn(x), equal_nan=True)
