"""Protects against malformed dense calls: eager's exception, a clear message, a usable module."""

import numpy as np
import pytest
import torch
from bad_calls import BACKENDS, H0, PACKED, B, H, I, Row, T, X, expect_eager, expect_refusal, pair
from odd_tensors import jagged, mkldnn, nested, quantized, sparse, sparse_rows

import rnnjit
from rnnjit.testing import RecomputeBackend

BAD_CALLS = {
    "0-D": ((torch.tensor(1.0),), r"input must be 2-D .* or 3-D .* got 0-D: shape \[\]"),
    "1-D": ((torch.zeros(4),), r"input must be 2-D .* got 1-D: shape \[4\]"),
    "4-D": ((torch.zeros(3, 2, 4, 1),), "input must be 2-D .* got 4-D"),
    "5-D": ((torch.zeros(3, 2, 4, 1, 1),), "input must be 2-D .* got 5-D"),
    "features": ((torch.zeros(T, B, 7),), r"input_size=4 .* got 7: shape \[3, 2, 7\]"),
    "features, unbatched": ((torch.zeros(T, 7),), r"input_size=4 .* got 7: shape \[3, 7\]"),
    "float64": ((X.double(),), "RNN input dtype .torch.float64. does not match weight dtype"),
    "float16": ((X.half(),), "RNN input dtype .torch.float16. does not match weight dtype"),
    "int64": (
        (torch.ones(T, B, I, dtype=torch.int64),),
        "RNN input dtype .torch.int64. does not match",
    ),
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
    "sparse": ((sparse(X),), "sparse"),
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
    "no arguments": ((), "missing 1 required positional argument: 'input'"),
    "bfloat16": ((X.bfloat16(),), "RNN input dtype .torch.bfloat16. does not match weight dtype"),
    "no features": ((torch.zeros(T, B, 0),), r"input_size=4 .* got 0: shape \[3, 2, 0\]"),
    "quantized": ((quantized(X),), "input must not be quantized, got torch.quint8"),
    "quantized, hx": ((quantized(X), H0), "RNN input dtype .torch.quint8. does not match"),
    "nested": ((nested(T, B, I),), "input must be a dense tensor, got a nested one"),
    "jagged": ((jagged(T, B, I),), "expected to contain only concrete integers"),
    "sparse rows": ((sparse_rows(X),), "input must be a dense tensor, got one of layout .*csr"),
    "MKL-DNN's": ((mkldnn(X),), "input must be a dense tensor, got one of layout .*mkldnn"),
    "sparse, unbatched": ((sparse(X[:, 0]),), "input must be a dense tensor, got .*sparse_coo"),
    "hx of another batch than none": (
        (X[:, :0], H0),
        r"hx must have shape \[1, 0, 5\].* got \[1, 2",
    ),
    "hx bool": ((X, H0.bool()), "hx is torch.bool but the weights are torch.float32"),
    "hx complex": ((X, H0 * 1j), "hx is torch.complex64 but the weights are torch.float32"),
    "hx number": ((X, 0), "hx must be a Tensor or None, got int"),
    "hx False": ((X, False), "hx must be a Tensor or None, got bool"),
    "hx packed": ((X, PACKED), "hx must be a Tensor or None, got PackedSequence"),
    "hx quantized": ((X, quantized(H0)), "hx is torch.quint8 but the weights are torch.float32"),
    "hx nested": ((X, nested(1, B, H)), "hx must be a dense tensor, got a nested one"),
    "hx jagged": ((X, jagged(1, B, H)), "Expected hidden size"),
    "hx MKL-DNN's": ((X, mkldnn(H0)), "hx must be a dense tensor, got one of layout .*mkldnn"),
    "hx layers, unbatched": ((X[:, 0], torch.zeros(2, H)), r"\[1, 5\].* got \[2, 5\]"),
    "hx batch first": ((X, H0.transpose(0, 1)), r"hx must have shape \[1, 2, 5\].* got \[2, 1, 5"),
}

OTHER_STACKS = {
    "no time steps, batch first": (
        {"batch_first": True},
        (torch.zeros(B, 0, I),),
        r"at least one time step.* shape \[2, 0, 4\]",
    ),
    "hx batch first": (
        {"batch_first": True},
        (torch.zeros(B, T, I), torch.zeros(B, 1, H)),
        r"hx must have shape \[1, 2, 5\].* got \[2, 1, 5\]",
    ),
    "hx of one layer of two": (
        {"num_layers": 2},
        (X, H0),
        r"must have shape \[2, 2, 5\].* got \[1,",
    ),
    "hx of one direction of two": ({"bidirectional": True}, (X, H0), r"\[2, 2, 5\].* got \[1, 2"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, backend):
    args, message = BAD_CALLS[name]
    rnn, fast = pair(backend)
    expect_eager(rnn, fast)  # so that there are short ways to be led astray
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            expect_refusal(Row(lambda module: module(*args), message), rnn, fast)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("name", OTHER_STACKS)
def test_bad_calls_of_other_stacks(name):
    options, args, message = OTHER_STACKS[name]
    expect_refusal(Row(lambda module: module(*args), message), *pair(**options))


def test_too_many_arguments():
    rnn, fast = pair()
    given = (X, None, None, None, False, None)
    row = Row(lambda module: module(*given), "takes from 2 to 6 positional arguments")
    expect_refusal(row._replace(asked=False), rnn, fast)  # it is Python that counts them
    expect_eager(rnn, fast)


@pytest.mark.parametrize("keyword", ["h0", "inputs", "resets"])
def test_arguments_that_do_not_exist(keyword):
    rnn, fast = pair()
    row = Row(lambda module: module(X, **{keyword: H0}), f"unexpected keyword argument '{keyword}'")
    expect_refusal(row, rnn, fast)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("layout", [sparse, sparse_rows])
def test_sparse_states_are_taken_as_eager_takes_them(layout):
    rnn, fast = pair()
    leaves = [layout(H0).requires_grad_() for _ in range(2)]
    for module, leaf in zip((rnn, fast), leaves, strict=True):
        torch.testing.assert_close(module(X, leaf), rnn(X, H0))
        module(X, leaf)[0].sum().backward()
    torch.testing.assert_close(leaves[1].grad.to_dense(), leaves[0].grad.to_dense())


def test_nan_and_inf_are_not_bad_input():
    rnn, fast = pair()
    x = X.clone()
    x[1, 0, 0], x[1, 1, 0] = np.nan, np.inf
    torch.testing.assert_close(fast(x), rnn(x), equal_nan=True)


class FailsOnce(RecomputeBackend):
    """Its first backward pass raises."""

    name = "once"
    failed = False

    def backward(self, *args):
        if not self.failed:
            self.failed = True
            raise ArithmeticError("on the way back")
        return super().backward(*args)


def test_after_a_backward_pass_that_raises():
    rnn, fast = pair(FailsOnce())
    with pytest.raises(ArithmeticError, match="on the way back"):
        fast(X)[0].sum().backward()
    expect_eager(rnn, fast)


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_a_gradient_of_the_wrong_shape(backend):
    rnn, fast = pair(backend)
    for module in (rnn, fast):
        with pytest.raises(RuntimeError, match="hape"):
            module(X)[0].backward(torch.ones(T, B, H + 1))
    y, _ = fast(X)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    expect_eager(rnn, fast)


CELL_CALLS = {
    "list": (([1.0],), "input must be a Tensor, got list"),
    "packed": ((PACKED,), "input must be a Tensor, got PackedSequence"),
    "3-D": ((X,), r"input must be 1-D or 2-D, got 3-D: \[3, 2, 4\]"),
    "features": ((X[0, :, :3],), "input_size=4 .* got 3"),
    "quantized": ((quantized(X[0]),), "input must not be quantized"),
    "nested": ((nested(B, I),), "input must be a dense tensor, got a nested one"),
    "hx tuple": ((X[0], (H0[0], H0[0])), "hx must be a Tensor, got tuple"),
    "hx rank": ((X[0], H0[0, 0]), r"hx must have shape \[2, 5\], got \[5\]"),
    "hx batch": ((X[0], torch.zeros(3, H)), r"hx must have shape \[2, 5\], got \[3, 5\]"),
    "hx hidden, unbatched": ((X[0, 0], torch.zeros(6)), r"hx must have shape \[5\], got \[6\]"),
    "hx float64": ((X[0], H0[0].double()), "hx is torch.float64"),
    "hx on meta": ((X[0], H0[0].to("meta")), "hx is on meta but the weights are on cpu"),
}


@pytest.mark.parametrize("name", CELL_CALLS)
def test_bad_calls_of_cells(name):
    args, message = CELL_CALLS[name]
    cell = torch.nn.RNNCell(I, H)
    fast = rnnjit.compile(cell)
    expect_refusal(Row(lambda module: module(*args), message), cell, fast)
    torch.testing.assert_close(fast(X[0], H0[0]), cell(X[0], H0[0]))


def test_a_sparse_input_of_a_cell_is_taken_as_eager_takes_it():
    cell = torch.nn.RNNCell(I, H)
    fast = rnnjit.compile(cell)
    torch.testing.assert_close(fast(sparse(X[0]), sparse(H0[0])), cell(X[0], H0[0]))
