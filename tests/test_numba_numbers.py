"""What the Numba backend promises about its numbers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit_numba import plan, run


def identity_layer(dtype, nonlinearity="tanh"):
    """A layer that computes h = activation(x) for x of one feature."""
    rnn = nn.RNN(1, 1, bias=False, nonlinearity=nonlinearity).to(dtype)
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(1.0)
        rnn.weight_hh_l0.fill_(0.0)
    return rnnjit.compile(rnn, backend="numba")


def activate(x, nonlinearity="tanh"):
    with torch.no_grad():
        y, _ = identity_layer(x.dtype, nonlinearity)(x.view(1, -1, 1))
    return y.view(-1)


def gradients(module, x, h0, lengths=None):
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    y, h_n = module(x if lengths is None else pack_padded_sequence(x, lengths), h0)
    y = y if lengths is None else y.data
    (y.square().sum() + h_n.sum()).backward()
    found = [y.detach(), h_n.detach(), x.grad, h0.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    return found


@pytest.fixture
def threads():
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_within_two_and_a_half_units_in_the_last_place(dtype):
    size = torch.logspace(-40, 1.5, 100_001, dtype=torch.float64)
    x = torch.cat([torch.linspace(-12, 12, 100_001, dtype=torch.float64), size, -size]).to(dtype)
    truth = np.tanh(x.numpy().astype(np.longdouble))
    unit = np.spacing(np.abs(truth).astype(x.numpy().dtype)).astype(np.longdouble)
    error = np.abs(activate(x).numpy().astype(np.longdouble) - truth) / unit
    assert error.max() < 2.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values_of_activations(dtype):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([0.0, -0.0, inf, -inf, nan, 30.0, -30.0, 1e-40], dtype=dtype)
    torch.testing.assert_close(activate(x), torch.tanh(x), equal_nan=True, rtol=1e-6, atol=0)
    torch.testing.assert_close(activate(x, "relu"), torch.relu(x), equal_nan=True, rtol=0, atol=0)


SHAPES = [
    # T, B, I, H, layers, bidirectional
    (6, 1, 5, 300, 1, False),
    (6, 1, 40, 200, 1, True),
    (9, 2, 17, 250, 2, False),
    (7, 8, 33, 64, 1, True),
    (40, 33, 20, 47, 1, False),
    (5, 70, 129, 130, 1, False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(shape, threads):
    T, B, I, H, layers, bidirectional = shape
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, layers, bidirectional=bidirectional)
    module = rnnjit.compile(rnn, backend="numba")
    x = torch.randn(T, B, I)
    h0 = torch.randn(layers * (1 + bidirectional), B, H)
    threads(1)
    alone = gradients(module, x, h0)
    for count in (2, 3, 4, 7):
        threads(count)
        for expected, found in zip(alone, gradients(module, x, h0), strict=True):
            assert torch.equal(expected, found), count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_of_a_row_do_not_depend_on_its_company(dtype):
    torch.manual_seed(0)
    module = rnnjit.compile(nn.RNN(37, 83).to(dtype), backend="numba")
    x = torch.randn(11, 45, 37, dtype=dtype)
    with torch.no_grad():
        whole, _ = module(x)
        for rows in (slice(0, 1), slice(3, 5), slice(7, 20), slice(44, 45)):
            part, _ = module(x[:, rows])
            assert torch.equal(part, whole[:, rows])


def test_bits_of_a_sequence_do_not_depend_on_packing():
    torch.manual_seed(0)
    module = rnnjit.compile(nn.RNN(12, 70, bidirectional=True), backend="numba")
    lengths = [9, 9, 7, 4, 1]
    x = torch.randn(9, 5, 12)
    with torch.no_grad():
        packed, h_n = module(pack_padded_sequence(x, torch.tensor(lengths)))
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(packed)
        for b, length in enumerate(lengths):
            alone, last = module(x[:length, b : b + 1])
            assert torch.equal(padded[:length, b : b + 1], alone)
            assert torch.equal(h_n[:, b : b + 1], last)


def test_long_sums_are_as_accurate_as_eager():
    torch.manual_seed(0)
    rnn = nn.RNN(2048, 700, nonlinearity="relu")
    x = torch.randn(3, 40, 2048)
    exact = nn.RNN(2048, 700, nonlinearity="relu").double()
    exact.load_state_dict(rnn.state_dict())
    module = rnnjit.compile(rnn, backend="numba")
    h0 = torch.zeros(1, 40, 700)
    truth = gradients(exact, x.double(), h0.double())
    for true, eager, ours in zip(
        truth, gradients(rnn, x, h0), gradients(module, x, h0), strict=True
    ):
        allowed = 2 * (eager - true).abs().max() + 2e-7 * true.abs().max()
        assert (ours - true).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(37, 83), (130, 200), (3, 600)], ids=str)
def test_bits_of_a_stream_are_those_of_the_whole_sequence(dtype, sizes):
    torch.manual_seed(0)
    I, H = sizes
    module = rnnjit.compile(nn.RNN(I, H, bidirectional=False).to(dtype), backend="numba")
    x, h = torch.randn(30, 2, I, dtype=dtype), torch.randn(1, 2, H, dtype=dtype)
    with torch.no_grad():
        whole, last = module(x, h)
        for t in range(30):
            y, h = module(x[t : t + 1], h)
            assert torch.equal(y, whole[t : t + 1])
    assert torch.equal(h, last)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_bits_of_packed_rows_do_not_depend_on_the_number_of_threads(bidirectional, threads):
    torch.manual_seed(0)
    rnn = nn.RNN(40, 90, bidirectional=bidirectional)
    module = rnnjit.compile(rnn, backend="numba")
    lengths = torch.tensor([40, 33, 33, 20, 9, 8, 8, 7, 3, 1, 1])
    x, h0 = torch.randn(40, 11, 40), torch.randn(1 + bidirectional, 11, 90)

    def packed(x, h0):
        y, h_n = module(pack_padded_sequence(x, lengths), h0)
        return y.data, h_n

    packed.parameters, packed.zero_grad = module.parameters, module.zero_grad
    threads(1)
    alone = gradients(packed, x, h0)
    for count in (2, 3, 5):
        threads(count)
        for expected, found in zip(alone, gradients(packed, x, h0), strict=True):
            assert torch.equal(expected, found), count


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_two_thousand_steps_are_as_accurate_as_eager(nonlinearity):
    torch.manual_seed(0)
    rnn = nn.RNN(24, 50, nonlinearity=nonlinearity)
    exact = nn.RNN(24, 50, nonlinearity=nonlinearity).double()
    exact.load_state_dict(rnn.state_dict())
    module = rnnjit.compile(rnn, backend="numba")
    x, h0 = torch.randn(2000, 3, 24), torch.zeros(1, 3, 50)
    truth = gradients(exact, x.double(), h0.double())
    for true, eager, ours in zip(
        truth, gradients(rnn, x, h0), gradients(module, x, h0), strict=True
    ):
        allowed = 2 * (eager - true).abs().max() + 2e-7 * true.abs().max()
        assert (ours - true).abs().max() <= allowed


@pytest.fixture
def windows(monkeypatch):
    """Sets how many rows a backward pass computes before it sums them."""

    def choose(rows):
        monkeypatch.setattr(plan, "_WINDOW_ROWS", rows)
        monkeypatch.setattr(plan, "_WINDOW_BATCHES", 1)
        run._backward_recipe.cache_clear()

    yield choose
    run._backward_recipe.cache_clear()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(
    ("T", "B", "H"),
    [(1200, 1, 40), (700, 1, 300), (150, 7, 33), (150, 7, 200), (40, 50, 20), (3, 500, 24)],
)
def test_gradients_over_many_windows(packed, T, B, H, windows, threads):
    torch.manual_seed(0)
    rnn = nn.RNN(11, H).double()
    x, h0 = torch.randn(T, B, 11).double(), torch.randn(1, B, H).double()
    lengths = torch.linspace(T, 1, B).round().long() if packed else None
    expected = gradients(rnn, x, h0, lengths)
    fast = rnnjit.compile(rnn, backend="numba")
    found = []
    threads(2)
    for rows in (1, 64, 500, 10**6):
        windows(rows)
        found.append(gradients(fast, x, h0, lengths))
    threads(1)
    found.append(gradients(fast, x, h0, lengths))
    for part, result in enumerate(found[0]):
        torch.testing.assert_close(result, expected[part])
        assert all(torch.equal(result, other[part]) for other in found)
