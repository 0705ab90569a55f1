"""Protects against malformed packed calls: eager's outcome, and no read out of bounds."""

import pytest
import torch
from bad_calls import BACKENDS, H0, PACKED, B, H, I, Row, expect_eager, expect_refusal, pair
from odd_tensors import mkldnn, nested, quantized, sparse, sparse_rows
from torch.nn.utils.rnn import PackedSequence


def packed(sizes, rows=None, dtype=torch.int64, data=None, **indices):
    data = torch.randn(sum(sizes) if rows is None else rows, I) if data is None else data
    return PackedSequence(data, torch.tensor(sizes, dtype=dtype), **indices)


def ordered(order, inverse=(0, 1)):
    """Packed input with what need not be orders: tensors, or numbers to make them of."""
    made = [torch.tensor(o) if isinstance(o, (list, tuple)) else o for o in (order, inverse)]
    return PACKED._replace(sorted_indices=made[0], unsorted_indices=made[1])


SWAPPED = {"sorted_indices": torch.tensor([1, 0]), "unsorted_indices": torch.tensor([1, 0])}
SIZES = torch.tensor([2, 1])

PACKED_CALLS = {
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
    "sizes list": (
        (PACKED._replace(batch_sizes=[2, 1]),),
        "batch_sizes must be a Tensor, got list",
    ),
    "sizes None": ((PACKED._replace(batch_sizes=None),), "must be a Tensor, got NoneType"),
    "sizes empty list": ((PACKED._replace(batch_sizes=[]),), "must be a Tensor, got list"),
    "sizes numpy": ((PACKED._replace(batch_sizes=SIZES.numpy()), H0), "a Tensor, got ndarray"),
    "sizes on meta": (
        (PACKED._replace(batch_sizes=SIZES.to("meta")),),
        "batch_sizes must be a dense tensor on the CPU, got one of layout .* on meta",
    ),
    "sizes sparse": ((PACKED._replace(batch_sizes=sparse(SIZES)),), "batch_sizes must be a dense"),
    "sizes bool": ((packed([1, 1], 3, torch.bool),), "1-D and torch.int64, got 1-D torch.bool"),
    "sizes beyond 64 bits": ((packed([2**62] * 4, 3),), "adds up to 18446744073709551616 rows"),
    "data None": ((PACKED._replace(data=None),), "input.data must be a Tensor, got NoneType"),
    "data 0-D": ((packed([2, 1], data=torch.tensor(1.0)),), "input.data must be 2-D, got 0-D"),
    "data int64": ((packed([2, 1], data=torch.ones(3, I).long()),), "dtype .torch.int64. does not"),
    "data on meta": ((packed([2, 1], data=torch.ones(3, I, device="meta")),), "input is on meta"),
    "data quantized": (
        (packed([2, 1], data=quantized(torch.ones(3, I))),),
        "input must not be quantized",
    ),
    "data nested": (
        (PACKED._replace(data=nested(3, I)),),
        "input.data must be a dense tensor, got a",
    ),
    "data MKL-DNN's": (
        (PACKED._replace(data=mkldnn(torch.ones(3, I))),),
        "input.data must be a dense tensor, got one of layout .*mkldnn",
    ),
    "hx on meta": ((PACKED, H0.to("meta")), "hx is on meta but the weights are on cpu"),
    "hx nested": ((PACKED, nested(1, B, H)), "hx must be a dense tensor, got a nested one"),
    "order beyond, hx": ((ordered([0, 5]), H0), "sorted_indices must lie between 0 and 1, got 5"),
    "order negative, hx": ((ordered([-1, 0]), H0), "must lie between 0 and 1, got -1"),
    "order short, hx": ((ordered([0]), H0), "an element for each of 2 sequences, .* got 1 on cpu"),
    "order long, hx": ((ordered([0, 1, 0]), H0), "for each of 2 sequences, .* got 3 on cpu"),
    "order float, hx": (
        (ordered([0.0, 1.0]), H0),
        "sorted_indices must be torch.int64 or int32, g",
    ),
    "order 2-D, hx": ((ordered([[0, 1]]), H0), "sorted_indices must be 1-D, got 2-D"),
    "order sparse, hx": (
        (ordered(sparse(SIZES)), H0),
        "sorted_indices must be 1-D, got 1-D of layo",
    ),
    "order text, hx": ((ordered("01"), H0), "sorted_indices must be a Tensor or None, got str"),
    "inverse beyond": (
        (ordered([0, 1], [0, 9]),),
        "unsorted_indices must lie between 0 and 1, got 9",
    ),
    "inverse negative": ((ordered([0, 1], [-1, 0]),), "unsorted_indices must lie between 0 and 1"),
    "inverse alone": ((ordered(None, [0, 9]),), "unsorted_indices must lie between 0 and 1, got 9"),
    "inverse float": (
        (ordered([0, 1], [0.0, 1.0]),),
        "unsorted_indices must be torch.int64 or int",
    ),
    "inverse 2-D": ((ordered([0, 1], [[0, 1]]),), "unsorted_indices must be 1-D, got 2-D"),
    "inverse text": (
        (ordered([0, 1], "01"),),
        "unsorted_indices must be a Tensor or None, got str",
    ),
}

# Torch is not asked about these: not all of its kernels check them before they read.
NOT_ASKED = (
    *("packed, growing", "packed, negative", "packed, all negative", "packed, 2-D sizes"),
    *("sizes beyond 64 bits", "data nested"),
)

# Eager takes these, and returns states of other sequences, too few, or what memory held.
TAKEN_BY_EAGER = {
    "hole in sizes": ((packed([2, 0, 1]),), r"must never grow .* got \[2, 0, 1\]"),
    "order beyond": ((ordered([0, 5]),), "sorted_indices must lie between 0 and 1, got 5"),
    "order negative": ((ordered([-1, 0]),), "sorted_indices must lie between 0 and 1, got -1"),
    "order short": ((ordered([0]),), "sorted_indices must have an element for each of 2"),
    "order on meta": ((ordered(SIZES.to("meta")), H0), "on cpu, got 2 on meta"),
    "inverse short": (
        (ordered([0, 1], [0]),),
        "unsorted_indices must have an element for each of 2",
    ),
    "inverse long": (
        (ordered([0, 1], [0, 1, 0]),),
        "unsorted_indices must have an element for each",
    ),
    "inverse empty": ((ordered([0, 1], torch.tensor([]).long()),), "got 0 on cpu"),
    "inverse on meta": ((ordered([0, 1], SIZES.to("meta")),), "on cpu, got 2 on meta"),
}


def take_short_ways(fast):
    """Calls after which there is a fast path for every kind of good call."""
    for given in (PACKED, packed([2, 1], **SWAPPED)):
        fast(given)
        fast(given, H0)
    assert len(fast._fast_paths[PackedSequence]) == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PACKED_CALLS)
def test_bad_packed_calls(name, backend):
    args, message = PACKED_CALLS[name]
    rnn, fast = pair(backend)
    row = Row(lambda module: module(*args), message, asked=name not in NOT_ASKED)
    take_short_ways(fast)
    expect_refusal(row, rnn, fast)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("name", TAKEN_BY_EAGER)
def test_what_eager_takes_and_gets_wrong(name):
    args, message = TAKEN_BY_EAGER[name]
    rnn, fast = pair()
    take_short_ways(fast)
    expect_refusal(Row(lambda module: module(*args), message, RuntimeError), rnn, fast)
    expect_eager(rnn, fast)


@pytest.mark.parametrize("layout", [sparse, sparse_rows])
def test_sparse_data_is_taken_as_eager_takes_it(layout):
    rnn, fast = pair()
    given = PACKED._replace(data=layout(PACKED.data))
    torch.testing.assert_close(fast(given)[0].data, rnn(PACKED)[0].data)


@pytest.mark.parametrize("sizes", [[0], [0, 0], [2, 1, 0]])
def test_steps_without_rows_are_not_bad_input(sizes):
    rnn, fast = pair()
    given = packed(sizes)
    torch.testing.assert_close(fast(given)[1], rnn(given)[1])


def test_long_batch_sizes_are_shown_in_part():
    _, fast = pair()
    with pytest.raises(RuntimeError, match=r"got \[1, 1, 1, 1, 1, 1, 1, 2, ...\]"):
        fast(packed([1] * 7 + [2] * 5))
