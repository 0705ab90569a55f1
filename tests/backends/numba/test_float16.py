"""Protects float16 on the CPU: rounded once, as exact as eager, for inference alone."""

import copy

import numba
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnjit
from rnnjit.codegen.host import host_isa
from rnnjit.testing.user_cells import USER_CELLS
from rnnjit_numba import memory
from rnnjit_numba.simd import Lanes
from rnnjit_numba.storage import Float16, Storage, converts_halves

# Eager says so of its own call.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

F16 = torch.float16
KINDS = {
    "rnn": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "projected": (nn.LSTM, {"proj_size": 9}),
    "bidirectional": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
}
#: Odd and even sizes; weights are read in place for few rows, and packed for many.
SIZES = [(5, 3, 7, 21), (9, 40, 30, 33), (1, 1, 5, 20), (3, 70, 16, 32)]


def case(kind, T, B, I, H):
    """A layer and its input."""
    torch.manual_seed(0)
    make, options = KINDS[kind]
    return make(I, H, **options).to(F16), torch.randn(T, B, I).to(F16)


def flat(results):
    """Y and the last states."""
    y, h_n = results
    return [y, *([h_n] if isinstance(h_n, torch.Tensor) else h_n)]


def held_to_eager(found, eager, truth):
    """At most 1.5 times eager's own error, or half a unit in the last place of the largest."""
    for got, own, exact in zip(found, eager, truth, strict=True):
        assert got.dtype == own.dtype == F16
        error, allowed = ((value.double() - exact).norm() for value in (got, own))
        assert error <= 1.5 * allowed + 2.0**-11 * exact.norm()


@pytest.mark.parametrize("converts", [False, True], ids=["integers", "instruction"])
def test_numbers_are_read_and_rounded_as_torch_does(converts):
    isa = host_isa()
    lanes = Lanes(32, isa.lanes(4), isa.fma)
    if converts and not converts_halves(lanes, isa.features):
        pytest.skip("the processor has no instruction for it")
    narrow, wide = Float16(lanes, masks=False, converts=converts), Storage(lanes)
    torch.manual_seed(0)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(F16)
    read = copied(narrow, wide, every, torch.empty(2**16))
    equal_with_nan(read, every.float())
    # All halves of a unit around every number, subnormal or not, and what becomes infinite.
    bits = every.float().view(torch.int32)
    nearby = [every.float()]
    nearby += [(bits + (1 << 12) + k).view(torch.float32) for k in (-1, 0, 1)]
    nearby += [torch.randn(2**16) * 2.0**exponent for exponent in (-150, -30, -24, -15, 0, 15)]
    for values in nearby:
        stored = copied(wide, narrow, values, torch.empty(2**16, dtype=F16))
        equal_with_nan(stored, values.to(F16))


def copied(source, target, values, to):
    """Values in the memory of `to`, as kernels copy them."""
    copy, lanes = memory.copy(source, target), source.lanes.count
    read, written = source.itemsize, target.itemsize

    @numba.njit
    def every(to, start, count):
        for k in range(0, count, lanes):
            copy(to + k * written, start + k * read, lanes, lanes)

    every(to.data_ptr(), values.data_ptr(), len(values))
    return to


def equal_with_nan(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit(), wanted.signbit())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_as_exact_as_eager_s(kind, sizes):
    rnn, x = case(kind, *sizes)
    fast = rnnjit.compile(rnn, backend="numba")
    with torch.no_grad():
        found, again, eager = (flat(module(x)) for module in (fast, fast, rnn))
        held_to_eager(found, eager, flat(copy.deepcopy(rnn).double()(x.double())))
    # The second call takes the fast path.
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("name", ["leaky", "timed", "integrator"])
def test_cells_of_the_user(name):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(USER_CELLS[name](6, 21)).to(F16)
    fast, x = rnnjit.compile(module, backend="numba"), torch.randn(7, 5, 6).to(F16)
    with torch.no_grad():
        found, eager = flat(fast(x)), flat(module(x))
        held_to_eager(found, eager, flat(copy.deepcopy(module).double()(x.double())))


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "projected"])
def test_packed_streamed_and_threaded_calls_have_the_same_bits(kind):
    rnn, x = case(kind, 12, 9, 5, 21)
    lengths = torch.tensor([12, 3, 7, 1, 12, 5, 9, 2, 11])
    fast = rnnjit.compile(rnn, backend="numba").eval()
    with torch.no_grad():
        padded, _ = fast(x)
        packed, _ = fast(pack_padded_sequence(x, lengths, enforce_sorted=False))
        stream = rnnjit.Stream(rnn.eval(), 9, backend="numba")
        streamed = torch.stack([stream.step(frame).clone() for frame in x])
        threads = torch.get_num_threads()
        torch.set_num_threads(3 - min(threads, 2))
        try:
            other, _ = fast(x)
        finally:
            torch.set_num_threads(threads)
    found, _ = pad_packed_sequence(packed)
    for b, length in enumerate(lengths):
        assert torch.equal(found[:length, b], padded[:length, b])
    assert torch.equal(streamed, padded)
    assert torch.equal(other, padded)


def test_explain_says_that_float16_is_not_trained_and_who_runs_it():
    rnn, x = case("gru", 3, 2, 5, 8)
    module = rnnjit.compile(rnn)
    report = rnnjit.explain(module, x).calls[0]
    (reason,) = next(each.reasons for each in report.verdicts if each.backend.name == "numba")
    assert "float16 is for inference, under torch.no_grad()" in reason
    assert report.chosen != "numba"
    with pytest.raises(rnnjit.UnsupportedError, match="train in bfloat16 or float32"):
        rnnjit.compile(rnn, backend="numba")(x)
    with torch.no_grad():
        assert rnnjit.explain(module, x).calls[0].chosen == "numba"
