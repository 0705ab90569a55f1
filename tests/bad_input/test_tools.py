"""Protects streams, resets, gradient flow and tuning against invalid arguments."""

import pytest
import torch
from bad_calls import H0, PACKED, B, H, I, T, X, expect_eager, pair
from odd_tensors import nested, sparse
from torch import nn

import rnnjit

MASK = torch.zeros(T, B, dtype=torch.bool)
MASK[1, 0] = True


def stream(batch=1, **options):
    return rnnjit.Stream(nn.RNN(I, H, **options), batch)


STREAMS = {
    "no module": (lambda: rnnjit.Stream(None), TypeError, "module must be .* got NoneType"),
    "class": (lambda: rnnjit.Stream(nn.RNN), TypeError, "module must be .* got type"),
    "LSTMCell": (lambda: rnnjit.Stream(nn.LSTMCell(I, H)), TypeError, "or nn.GRU, got LSTMCell"),
    "bidirectional LSTM": (
        lambda: rnnjit.Stream(nn.LSTM(I, H, bidirectional=True)),
        ValueError,
        "module must be of one direction",
    ),
    "Recurrent": (
        lambda: rnnjit.Stream(rnnjit.Recurrent(rnnjit.cells.JANET(I, H))),
        TypeError,
        r"y, states = module\(x\[None\], states\)",
    ),
    "cell": (lambda: rnnjit.Stream(nn.RNNCell(I, H)), TypeError, "or nn.GRU, got RNNCell"),
    "two ways": (lambda: stream(bidirectional=True), ValueError, "module must be of one direction"),
    "no batch": (lambda: stream(0), ValueError, "batch_size must be at least 1, got 0"),
    "batch str": (lambda: stream("2"), TypeError, "batch_size must be an int, got str"),
    "batch None": (lambda: stream(None), TypeError, "batch_size must be an int, got NoneType"),
    "batch float": (lambda: stream(2.0), TypeError, "batch_size must be an int, got float"),
    "backend": (lambda: rnnjit.Stream(nn.RNN(I, H), backend="nunba"), ValueError, "mean 'numba'"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_that_cannot_be(name):
    call, error, message = STREAMS[name]
    with pytest.raises(error, match=message):
        call()


FRAMES = {
    "None": (None, AttributeError, "x must be a Tensor, got NoneType"),
    "list": ([1.0], AttributeError, "x must be a Tensor, got list"),
    "packed": (PACKED, AttributeError, "x must be a Tensor, got PackedSequence"),
    "steps": (torch.zeros(1, 2, I), ValueError, r"x must have shape \[2, 4\], got \[1, 2, 4\]"),
    "flat": (torch.zeros(I), ValueError, r"x must have shape \[2, 4\], got \[4\]"),
    "batch": (torch.zeros(3, I), ValueError, r"x must have shape \[2, 4\], got \[3, 4\]"),
    "features": (torch.zeros(2, 7), ValueError, r"x must have shape \[2, 4\], got \[2, 7\]"),
    "float64": (torch.zeros(2, I).double(), ValueError, "x is torch.float64 but the weights"),
    "int64": (torch.zeros(2, I).long(), ValueError, "x is torch.int64 but the weights are"),
    "meta": (torch.zeros(2, I, device="meta"), RuntimeError, "x is on meta but the weights"),
    "sparse": (sparse(torch.eye(2, I)), TypeError, "a stream steps over plain tensors"),
    "nested": (nested(2, I), ValueError, "x must be a dense tensor, got a nested one"),
}


@pytest.mark.parametrize("options", [{}, {"batch_first": True}])
@pytest.mark.parametrize("name", FRAMES)
def test_frames(name, options):
    frame, error, message = FRAMES[name]
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, **options)
    stepping = rnnjit.Stream(rnn, B)
    steps = [stepping.step(X[0])]
    with pytest.raises(error, match=message):
        stepping.step(frame)
    steps += [stepping.step(x) for x in X[1:]]
    with torch.no_grad():
        whole = rnn(X.transpose(0, 1))[0].transpose(0, 1) if options else rnn(X)[0]
    torch.testing.assert_close(torch.stack(steps), whole)


STATES = {
    "list": ([1.0], TypeError, "state must be a Tensor, got list"),
    "shape": (torch.zeros(1, H), ValueError, r"state must have shape \[1, 2, 5\], got \[1, 5\]"),
    "complex": (H0 * 1j, ValueError, "state must be torch.float32, got torch.complex64"),
    "meta": (H0.to("meta"), ValueError, "state must be a dense tensor .* on meta"),
    "sparse": (sparse(H0), ValueError, "state must be a dense tensor .* got torch.sparse_coo"),
}


@pytest.mark.parametrize("name", STATES)
def test_states(name):
    state, error, message = STATES[name]
    stepping = stream(B)
    stepping.state = H0
    with pytest.raises(error, match=message):
        stepping.state = state
    torch.testing.assert_close(stepping.state, H0)


ZEROED = {
    "list": ([True, False], TypeError, "which must be a boolean Tensor, got list"),
    "index": (0, TypeError, "which must be a boolean Tensor, got int"),
    "int64": (torch.tensor([1, 0]), ValueError, r"which must be boolean, of shape \[2\], got t"),
    "shape": (torch.tensor([True]), ValueError, r"of shape \[2\], got torch.bool \[1\]"),
    "meta": (torch.zeros(2, device="meta").bool(), ValueError, "which must be on cpu, got meta"),
}


@pytest.mark.parametrize("name", ZEROED)
def test_sequences_to_zero(name):
    which, error, message = ZEROED[name]
    stepping = stream(B)
    stepping.state = H0
    with pytest.raises(error, match=message):
        stepping.reset(which)
    torch.testing.assert_close(stepping.state, H0)


RESETS = {
    "int64": (X, MASK.long(), TypeError, "reset must be a boolean Tensor, got torch.int64"),
    "float32": (X, MASK.float(), TypeError, "reset must be a boolean Tensor, got torch.float32"),
    "list": (X, MASK.tolist(), TypeError, "reset must be a boolean Tensor, got list"),
    "numpy": (X, MASK.numpy(), TypeError, "reset must be a boolean Tensor, got ndarray"),
    "True": (X, True, TypeError, "reset must be a boolean Tensor, got bool"),
    "False": (X, False, TypeError, "reset must be a boolean Tensor, got bool"),
    "features": (X, MASK[..., None], ValueError, r"\[3, 2\], got \[3, 2, 1\]"),
    "steps alone": (X, MASK[:, 0], ValueError, r"reset must have the shape .* \[3, 2\], got \[3\]"),
    "turned": (X, MASK.t(), ValueError, r"reset must have the shape .* \[3, 2\], got \[2, 3\]"),
    "unbatched": (X[:, 0], MASK, ValueError, r"reset must have the shape .* \[3\], got \[3, 2\]"),
    "meta": (X, MASK.to("meta"), RuntimeError, "reset is on meta but the input is on cpu"),
    "sparse": (X, sparse(MASK), TypeError, "reset must be a dense Tensor, got one of layout"),
    "nested": (X, nested(T, B).bool(), TypeError, "reset must be a dense Tensor, got a nested"),
    "packed": (PACKED, MASK, TypeError, "reset needs dense input, got a PackedSequence"),
    "input": (X.double(), MASK, ValueError, "RNN input dtype .torch.float64. does not match"),
    "no input": (None, MASK, AttributeError, "input must be a Tensor .* got NoneType"),
}


@pytest.mark.parametrize("name", RESETS)
def test_resets(name):
    x, mask, error, message = RESETS[name]
    rnn, fast = pair()
    with pytest.raises(error, match=message):
        fast(x, reset=mask)
    expect_eager(rnn, fast)
    torch.testing.assert_close(fast(X, reset=MASK)[0][:, 1], rnn(X)[0][:, 1])


def test_a_sparse_state_with_resets():
    _, fast = pair()
    torch.testing.assert_close(fast(X, sparse(H0), reset=MASK), fast(X, H0, reset=MASK))


class Said(nn.Module):
    """Returns what `say` makes of an RNN's output."""

    def __init__(self, say):
        super().__init__()
        self.rnn, self.say = nn.RNN(I, H), say

    def forward(self, x):
        return self.say(self.rnn(x)[0])


def flow(loss=None, module=None, x=X):
    return rnnjit.gradient_flow(module or nn.RNN(I, H), x, loss=loss)


TOOLS = {
    "flow of no module": (lambda: rnnjit.gradient_flow(3, X), TypeError, "got int"),
    "flow without inputs": (
        lambda: rnnjit.gradient_flow(nn.RNN(I, H)),
        TypeError,
        "missing 1 required positional argument: 'input'",
    ),
    "flow without an RNN": (lambda: flow(module=nn.Linear(I, H)), ValueError, "calls no nn.RNN"),
    "loss no function": (lambda: flow(3), TypeError, "loss must be a function, got int"),
    "loss None": (lambda: flow(lambda o: None), TypeError, "must return a Tensor, got NoneType"),
    "loss float": (lambda: flow(lambda o: 1.0), TypeError, "must return a Tensor, got float"),
    "loss a pair": (lambda: flow(lambda o: o), TypeError, "must return a Tensor, got tuple"),
    "loss no scalar": (
        lambda: flow(lambda o: o[0]),
        RuntimeError,
        r"loss must return one real number, got shape \[3, 2, 5\]",
    ),
    "loss complex": (lambda: flow(lambda o: o[0].sum() * 1j), RuntimeError, "of torch.complex64"),
    "loss cut off": (lambda: flow(lambda o: o[0].sum().detach()), ValueError, "does not depend"),
    "loss of its own": (
        lambda: flow(lambda o: torch.ones((), requires_grad=True)),
        ValueError,
        "does not depend on any recurrent layer",
    ),
    "output a dict": (
        lambda: flow(module=Said(lambda y: {"y": y})),
        TypeError,
        "loss must be given .* got dict",
    ),
    "output a number": (lambda: flow(module=Said(lambda y: 3)), TypeError, "given .* got int"),
    "flow of a bad call": (lambda: flow(x=X.double()), ValueError, "RNN input dtype"),
    "tune without inputs": (
        lambda: rnnjit.tune(nn.RNN(I, H)),
        TypeError,
        "missing 1 required positional argument: 'input'",
    ),
    "tune, rounds str": (
        lambda: rnnjit.tune(nn.RNN(I, H), X, rounds="3"),
        TypeError,
        "rounds must be an int, got str",
    ),
    "tune, rounds float": (
        lambda: rnnjit.tune(nn.RNN(I, H), X, rounds=1.5),
        TypeError,
        "rounds must be an int, got float",
    ),
    "tune a bad call": (lambda: rnnjit.tune(nn.RNN(I, H), X.double()), ValueError, "input dtype"),
    "explain a class": (lambda: rnnjit.explain(nn.RNN), TypeError, "module must be .* got type"),
    "explain a bad call": (lambda: rnnjit.explain(nn.RNN(I, H), None), AttributeError, "input"),
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools(name):
    call, error, message = TOOLS[name]
    with pytest.raises(error, match=message):
        call()
