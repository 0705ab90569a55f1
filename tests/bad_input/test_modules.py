"""Protects modules whose weights or settings are made invalid, and then valid again."""

import pytest
import torch
from bad_calls import (
    BACKENDS,
    H,
    I,
    Row,
    X,
    expect_eager,
    expect_refusal,
    pair,
    restore,
    settings,
)
from odd_tensors import nested, sparse
from torch import nn

import rnnjit

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
    "w_hh 0-D": ("weight_hh_l0", torch.tensor(1.0), r"weight_hh_l0 must .* \[5, 5\], got \[\]"),
    "w_hh empty": ("weight_hh_l0", torch.zeros(0, 0), r"weight_hh_l0 must .* got \[0, 0\]"),
    "bias 2-D": (
        "bias_hh_l0",
        torch.zeros(H, 1),
        r"bias_hh_l0 must have shape \[5\], got \[5, 1\]",
    ),
    "w_hh int64": ("weight_hh_l0", torch.zeros(H, H).long(), "weight_hh_l0 must be torch.float32"),
    "w_ih complex": ("weight_ih_l0", torch.zeros(H, I) * 1j, "does not match weight dtype"),
    "w_ih float16": ("weight_ih_l0", torch.zeros(H, I).half(), "does not match weight dtype"),
    "w_ih on meta": ("weight_ih_l0", torch.zeros(H, I, device="meta"), "the weights are on meta"),
    "bias on meta": ("bias_ih_l0", torch.zeros(H, device="meta"), "bias_ih_l0 is on meta"),
    "w_hh sparse": (
        "weight_hh_l0",
        sparse(torch.eye(H)),
        "weight_hh_l0 must be a dense tensor, got",
    ),
    "w_hh nested": (
        "weight_hh_l0",
        nested(H, H),
        "weight_hh_l0 must be a dense tensor, got a nest",
    ),
}


def parameter(value):
    if value is None:
        return None
    return nn.Parameter(value, requires_grad=value.is_floating_point() and not value.is_nested)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(name, backend):
    attribute, value, message = BAD_WEIGHTS[name]
    rnn, fast = pair(backend)
    expect_eager(rnn, fast)
    kept = settings(rnn)
    for module in (rnn, fast):
        setattr(module, attribute, parameter(value))
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            expect_refusal(Row(lambda module: module(X), message), rnn, fast)
    for module in (rnn, fast):
        restore(module, kept)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("attribute", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_a_deleted_weight_is_missed_where_eager_goes_on_with_the_old_one(attribute):
    rnn, fast = pair()
    kept = settings(rnn)
    delattr(rnn, attribute)
    delattr(fast, attribute)
    row = Row(lambda module: module(X), f"no attribute '{attribute}'", AttributeError)
    expect_refusal(row, rnn, fast)
    for module in (rnn, fast):
        restore(module, kept)
    expect_eager(rnn, fast)


def test_a_bias_without_a_dimension_is_refused_where_eager_stretches_it():
    rnn, fast = pair()
    for module in (rnn, fast):
        module.bias_hh_l0 = nn.Parameter(torch.tensor(1.0))
    message = r"bias_hh_l0 must have shape \[5\], got \[\]"
    expect_refusal(Row(lambda module: module(X), message, RuntimeError), rnn, fast)


def test_a_sparse_input_weight_is_taken_as_eager_takes_it():
    rnn, fast = pair()
    dense = rnn(X)
    fast.weight_ih_l0 = nn.Parameter(sparse(rnn.weight_ih_l0.detach()))
    torch.testing.assert_close(fast(X), dense)


def test_nan_weights_are_not_bad_input():
    rnn, fast = pair()
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = float("nan")
    torch.testing.assert_close(fast(X), rnn(X), equal_nan=True)


BAD_SETTINGS = [
    ("hidden_size", 7, r"weight_ih_l0 must have shape \[7, 4\], got \[5, 4\] .*hidden_size=7"),
    ("hidden_size", 0, r"weight_ih_l0 must have shape \[0, 4\]"),
    ("hidden_size", -1, r"weight_ih_l0 must have shape \[-1, 4\]"),
    ("hidden_size", "5", "hidden_size must be an int, got '5'"),
    ("hidden_size", None, "hidden_size must be an int, got None"),
    ("hidden_size", 5.0, "hidden_size must be an int, got 5.0"),
    ("input_size", 7, r"input must have input_size=7 .* got 4"),
    ("input_size", 0, r"input must have input_size=0 .* got 4"),
    ("input_size", "4", "input_size must be a whole number, got '4'"),
    ("input_size", None, "input_size must be a whole number, got None"),
    ("input_size", 4.5, "input_size must be a whole number, got 4.5"),
    ("num_layers", 0, "the module has 4 weights, but its configuration needs 0"),
    ("num_layers", -1, "the module has 4 weights, but its configuration needs 0"),
    ("num_layers", 2, "the module has 4 weights, but its configuration needs 8"),
    ("num_layers", "1", "num_layers must be an int, got '1'"),
    ("num_layers", None, "num_layers must be an int, got None"),
    ("num_layers", 1.0, "num_layers must be an int, got 1.0"),
    ("num_layers", True, "num_layers must be an int, got True"),
    ("mode", "LSTM", "mode must be one of RNN_TANH, RNN_RELU, got 'LSTM'"),
    ("mode", "tanh", "mode must be one of RNN_TANH, RNN_RELU, got 'tanh'"),
    ("mode", None, "mode must be one of RNN_TANH, RNN_RELU, got None"),
    ("bias", False, "the module has 4 weights, but its configuration needs 2"),
    ("bias", "yes", "bias must be a bool, got 'yes'"),
    ("bias", None, "bias must be a bool, got None"),
    ("bias", 0, "bias must be a bool, got 0"),
    ("batch_first", "yes", "batch_first must be a bool, got"),
    ("batch_first", None, "batch_first must be a bool, got"),
    ("batch_first", 0, "batch_first must be a bool, got"),
    ("dropout", "half", "dropout must be a number, got 'half'"),
    ("dropout", None, "dropout must be a number, got None"),
    ("dropout", 1j, "dropout must be a number, got 1j"),
    ("bidirectional", True, "the module has 4 weights, but its configuration needs 8"),
    ("bidirectional", "yes", "bidirectional must be a bool, got 'yes'"),
    ("bidirectional", None, "bidirectional must be a bool, got None"),
    ("bidirectional", 0, "bidirectional must be a bool, got 0"),
    ("training", "yes", "training must be a bool, got 'yes'"),
    ("training", None, "training must be a bool, got None"),
    ("training", 1, "training must be a bool, got 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_SETTINGS)
def test_bad_settings(name, value, message):
    rnn, fast = pair()
    expect_eager(rnn, fast)
    kept = settings(rnn)
    for module in (rnn, fast):
        setattr(module, name, value)
    expect_refusal(Row(lambda module: module(X), message), rnn, fast)
    for module in (rnn, fast):
        restore(module, kept)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("name", ["mode", "input_size", "batch_first", "bias"])
def test_a_list_as_a_setting(name):
    rnn, fast = pair()
    for module in (rnn, fast):
        setattr(module, name, [1])
    expect_refusal(Row(lambda module: module(X), f"{name} must be .* got"), rnn, fast)


@pytest.mark.parametrize("name", ["hidden_size", "mode", "dropout", "bias", "input_size"])
def test_a_deleted_setting(name):
    rnn, fast = pair()
    kept = settings(rnn)
    for module in (rnn, fast):
        delattr(module, name)
    expect_refusal(Row(lambda module: module(X), f"no attribute '{name}'"), rnn, fast)
    for module in (rnn, fast):
        restore(module, kept)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("dropout", [2.0, -1.0, float("nan")])
def test_a_dropout_that_is_no_probability(dropout):
    rnn, fast = pair(num_layers=2)
    for module in (rnn, fast):
        module.dropout = dropout
    message = "dropout probability has to be between 0 and 1"
    expect_refusal(Row(lambda module: module(X), message), rnn, fast)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dropout", 2), ("dropout", torch.tensor(0.0)), ("input_size", 4.0), ("nonlinearity", "gelu")]
    + [(name, torch.tensor(value)) for name, value in (("hidden_size", H), ("num_layers", 1))],
)
def test_settings_that_eager_takes(name, value):
    rnn, fast = pair()
    for module in (rnn, fast):
        setattr(module, name, value)
    torch.testing.assert_close(fast(X), rnn(X))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nonlinearity", "gelu", "nonlinearity must be 'tanh' or 'relu', got 'gelu'"),
        ("nonlinearity", ["tanh"], "nonlinearity must be 'tanh' or 'relu', got"),
        ("hidden_size", "5", "hidden_size must be an int, got '5'"),
        ("hidden_size", 7, r"weight_ih must have shape \[7, 4\], got \[5, 4\]"),
        ("weight_ih", None, "weight_ih must be a Tensor, got NoneType"),
        ("weight_hh", None, "weight_hh must be a Tensor, got NoneType"),
        ("weight_hh", torch.zeros(6, 6), r"weight_hh must have shape \[5, 5\], got \[6, 6\]"),
        ("bias_hh", torch.zeros(6), r"bias_hh must have shape \[5\], got \[6\]"),
    ],
)
def test_bad_cells(name, value, message):
    cell = nn.RNNCell(I, H)
    fast = rnnjit.compile(cell)
    kept = getattr(cell, name)
    for module in (cell, fast):
        setattr(module, name, parameter(value) if isinstance(value, torch.Tensor) else value)
    expect_refusal(Row(lambda module: module(X[0]), message), cell, fast)
    for module in (cell, fast):
        setattr(module, name, kept)
    torch.testing.assert_close(fast(X[0]), cell(X[0]))
