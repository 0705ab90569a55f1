"""Protects streams: a stacked RNN frame by frame, against the whole sequence and against eager."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rnnjit
from rnnjit.testing import RecomputeBackend
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

T, I, H = 30, 6, 20
STACKS = [
    {},
    {"num_layers": 3},
    {"num_layers": 2, "nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "dropout": 0.5, "batch_first": True},
]


def streamed(stream, x):
    return torch.stack([stream.step(frame) for frame in x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("B", [1, 5, 40])
@pytest.mark.parametrize("options", STACKS, ids=str)
def test_frame_by_frame_is_bit_for_bit_the_whole_sequence(options, B, dtype):
    module = rnnjit.compile(nn.RNN(I, H, dtype=dtype, **options), backend="numba").eval()
    x = torch.randn(T, B, I, dtype=dtype)
    with torch.no_grad():
        y, h_n = module(x.transpose(0, 1) if module.batch_first else x)
    stream = rnnjit.Stream(module, B)
    found = streamed(stream, x)
    assert stream.backend == "numba"
    assert torch.equal(found, y.transpose(0, 1) if module.batch_first else y)
    assert torch.equal(stream.state, h_n)


@pytest.mark.parametrize("B", [1, 24])
def test_threads_share_a_step(B):
    module = rnnjit.compile(nn.RNN(300, 700, 2), backend="numba").eval()
    x = torch.randn(40, B, 300)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with torch.no_grad():
                assert torch.equal(streamed(rnnjit.Stream(module, B), x), module(x)[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", [n for n, b in rnnjit.backends().items() if not b.missing()])
def test_every_backend_streams_as_exactly_as_eager(name):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2)
    x = torch.randn(T, 3, I)
    found = streamed(rnnjit.Stream(rnn, 3, backend=name), x)
    with torch.no_grad():
        eager, truth = rnn(x)[0], copy.deepcopy(rnn).double()(x.double())[0]
    expected = Expected(eager, truth, largest(errors_of(eager, truth)), largest(truth))
    judge("y", "forward", found, expected)


LAYERS = {
    "LSTM": lambda: nn.LSTM(I, H, 2, dtype=torch.float64),
    "projected": lambda: nn.LSTM(I, H, 2, proj_size=7, bias=False, dtype=torch.float64),
    "GRU": lambda: nn.GRU(I, H, 2, dtype=torch.float64),
}


@pytest.mark.parametrize("backend", ["auto", "eager", RecomputeBackend()])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_several_gates_and_states_stream(name, backend):
    torch.manual_seed(0)
    rnn, x = LAYERS[name](), torch.randn(T, 3, I, dtype=torch.float64)
    stream = rnnjit.Stream(rnn, 3, backend=backend)
    with torch.no_grad():
        y, last = rnn(x)
        torch.testing.assert_close(streamed(stream, x), y, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(stream.state, last, rtol=1e-12, atol=1e-14)
        later, _ = rnn(x, last)
        torch.testing.assert_close(streamed(stream, x), later, rtol=1e-12, atol=1e-14)
        stream.state = last
        torch.testing.assert_close(streamed(stream, x), later, rtol=1e-12, atol=1e-14)
    stream.reset(torch.tensor([False, True, False]))
    states = stream.state if name != "GRU" else (stream.state,)
    assert [state.ne(0).any(2).all(0).tolist() for state in states] == [[True, False, True]] * len(
        states
    )
    stream.reset()
    torch.testing.assert_close(streamed(stream, x), y.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("B", [1, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_their_steps_are_the_whole_sequence_and_allocate_only_the_output(name, B):
    module = rnnjit.compile(LAYERS[name](), backend="numba").eval()
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.no_grad():
        y, last = module(x)
    stream = rnnjit.Stream(module, B)
    assert torch.equal(streamed(stream, x), y)
    assert all(map(torch.equal, stream.state, last))
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(5):
            stream.step(x[0])
    allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
    assert allocated == [8 * y[0].numel()] * 5


@pytest.mark.parametrize("name", LAYERS)
def test_a_stream_of_bfloat16_rounds_no_state_that_a_sequence_does_not(name):
    module = rnnjit.compile(LAYERS[name]().bfloat16(), backend="numba").eval()
    x = torch.randn(T, 3, I).bfloat16()
    with torch.no_grad():
        y, last = module(x)
    stream = rnnjit.Stream(module, 3)
    assert torch.equal(streamed(stream, x), y)
    assert stream.backend == "numba"
    for state, whole in zip(stream.state, last, strict=True):
        assert state.dtype is torch.bfloat16
        assert torch.equal(state, whole)


def test_states_that_do_not_fit_a_stream_of_several():
    stream = rnnjit.Stream(nn.LSTM(I, H))
    h, c = stream.state
    for value, error, said in (
        (h, TypeError, "state must be a tuple of 2 Tensors, got Tensor"),
        ((h,), TypeError, "state must be a tuple of 2 Tensors, got tuple"),
        ((h, None), TypeError, "state must be a Tensor, got NoneType"),
        ((h + 1, c[0]), ValueError, r"state must have shape \[1, 1, 20\], got \[1, 20\]"),
    ):
        with pytest.raises(error, match=said):
            stream.state = value
        assert not any(state.any() for state in stream.state)


def test_weights_are_read_at_every_step():
    module = rnnjit.compile(nn.RNN(I, H, 2)).eval()
    stream, x = rnnjit.Stream(module), torch.randn(4, 1, I)
    hx = None
    for frame, change in zip(x, ("data", "assign", "strides", "none"), strict=True):
        with torch.no_grad():
            y, hx = module(frame[None], hx)
        assert torch.equal(stream.step(frame), y[0])
        if change == "data":
            module.weight_hh_l1.data.mul_(0.5)
        if change == "assign":
            module.weight_ih_l0 = nn.Parameter(torch.randn(H, I))
        if change == "strides":
            module.weight_hh_l0.data = torch.randn(H, H).t()


def test_the_module_may_change_its_dtype():
    module = rnnjit.compile(nn.RNN(I, H)).eval()
    stream, x = rnnjit.Stream(module), torch.randn(2, 1, I)
    stream.step(x[0])
    state = stream.state
    module.double()
    with torch.no_grad():
        expected, _ = module(x[1:].double(), state.double())
    assert torch.equal(stream.step(x[1].double()), expected[0])


def test_state_is_read_set_and_reset():
    module = rnnjit.compile(nn.RNN(I, H, 2)).eval()
    stream, x = rnnjit.Stream(module, 3), torch.randn(3, I)
    first = stream.step(x)
    state = stream.state
    stream.step(x)
    assert not torch.equal(stream.state, state)
    stream.state = state
    assert torch.equal(stream.state, state)
    stream.reset(torch.tensor([False, True, False]))
    assert stream.state.ne(0).any(2).all(0).tolist() == [True, False, True]
    again = stream.step(x)
    assert torch.equal(again[1], first[1])
    assert not torch.equal(again[0], first[0])
    stream.reset()
    assert torch.equal(stream.step(x), first)


def test_streams_of_one_module_are_apart():
    module = rnnjit.compile(nn.RNN(I, H)).eval()
    x = torch.randn(4, 1, I)
    one, two = rnnjit.Stream(module), rnnjit.Stream(module)
    alone = streamed(rnnjit.Stream(module), x)
    found = [(one.step(frame), two.step(frame)) for frame in x]
    assert all(torch.equal(a, b) for a, b in found)
    assert torch.equal(torch.stack([a for a, _ in found]), alone)


def test_an_output_is_never_written_to_again():
    stream, x = rnnjit.Stream(nn.RNN(I, H, 2), backend="numba"), torch.randn(1, I)
    first = stream.step(x)
    kept = first.clone()
    for _ in range(5):
        stream.step(x)
    assert torch.equal(first, kept)


def test_the_only_tensor_that_is_allocated_is_the_output():
    stream, x = rnnjit.Stream(nn.RNN(I, H, 3), backend="numba"), torch.randn(1, I)
    stream.step(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(10):
            stream.step(x)
    allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
    assert allocated == [4 * H] * 10


def test_gradients_are_not_recorded():
    stream = rnnjit.Stream(nn.RNN(I, H))
    assert not stream.step(torch.randn(1, I, requires_grad=True)).requires_grad


def test_what_makes_no_sense():
    with pytest.raises(TypeError, match=r"nn\.GRU, got Linear"):
        rnnjit.Stream(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="of one direction"):
        rnnjit.Stream(nn.RNN(I, H, bidirectional=True))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        rnnjit.Stream(nn.RNN(I, H), 0)
    with pytest.raises(ValueError, match="not installed"):
        rnnjit.Stream(nn.RNN(I, H), backend="none-such")
    module = rnnjit.compile(nn.RNN(I, H))
    stream = rnnjit.Stream(module)
    for x, error, said in (
        (torch.zeros(1, I + 1), ValueError, r"shape \[1, 6\], got \[1, 7\]"),
        (torch.zeros(2, I), ValueError, r"\[2, 6\]"),
        (torch.zeros(1, I).double(), ValueError, "float64"),
        (torch.zeros(1, I, device="meta"), RuntimeError, "on meta"),
        ([1.0], AttributeError, "got list"),
    ):
        with pytest.raises(error, match=said):
            stream.step(x)
        assert stream.step(torch.zeros(1, I)).shape == (1, H)
    with pytest.raises(ValueError, match=r"state must have shape \[1, 1, 20\], got \[20\]"):
        stream.state = torch.zeros(H)
    with pytest.raises(ValueError, match="which must be boolean"):
        stream.reset(torch.zeros(1))
    module.weight_hh_l0 = nn.Parameter(torch.zeros(H, H + 1))
    with pytest.raises(RuntimeError, match="weight_hh_l0 must have shape"):
        stream.step(torch.zeros(1, I))
    module.mode = "RNN_RELU"
    with pytest.raises(RuntimeError, match="changed under a stream"):
        stream.step(torch.zeros(1, I))
    with torch.autocast("cpu"), pytest.raises(TypeError, match="autocast"):
        rnnjit.Stream(nn.RNN(I, H)).step(torch.zeros(1, I))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_dispatch_modes_are_refused_after_steps_too(kind):
    stream, x = rnnjit.Stream(kind(I, H), 2), torch.randn(2, I)
    before, called = stream.step(x), []
    stepper, stream._stepper = stream._stepper, lambda *given: called.append(given)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(TypeError, match="DispatchMode"):
        stream.step(x)
    assert not called  # it would get tensors without memory
    stream._stepper = stepper
    assert stream.step(x).shape == before.shape


class Stepping(RecomputeBackend):
    """A backend whose steps only add to the states, in the memory that it is given."""

    name = "stepping"

    def stepper(self, spec, dtype, batch):
        def step(x, hx, h_n, y, weights):
            for index, (before, after) in enumerate(zip(hx, h_n, strict=True)):
                np.add(before.numpy(), index + 1, out=after.numpy())
            y.numpy()[:] = h_n[0].numpy()[-1]

        return step


@pytest.mark.parametrize(("kind", "states"), [(nn.GRU, 1), (nn.LSTM, 2)])
def test_a_step_of_several_states_allocates_only_its_output(kind, states):
    B = 2
    rnn = kind(I, H, 3, **({"proj_size": 7} if states == 2 else {}))
    stream, x = rnnjit.Stream(rnn, B, backend=Stepping()), torch.randn(B, I)
    first = stream.step(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(10):
            last = stream.step(x)
    allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
    width = 7 if states == 2 else H
    assert allocated == [4 * B * width] * 10
    assert first.eq(1).all()
    assert last.eq(11).all()
    found = stream.state if states == 2 else (stream.state,)
    sizes = (width, H)[:states]
    assert [state.shape for state in found] == [(3, B, size) for size in sizes]
    assert [float(state.unique()) for state in found] == [11.0, 22.0][:states]
    stream.state = [state + 1 for state in found] if states == 2 else found[0] + 1
    stream.reset(torch.tensor([True, False]))
    stream.step(x)
    found = stream.state if states == 2 else (stream.state,)
    assert [state[0, :, 0].tolist() for state in found] == [[1, 13], [2, 25]][:states]
