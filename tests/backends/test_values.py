"""Protects the values of all of nn.RNN: eager's bits on eager's operators, else as in float64."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import rnnjit
from rnnjit.reference import ReferenceBackend
from rnnjit.testing import RecomputeBackend

BACKENDS = [RecomputeBackend(), *(b for b in rnnjit.backends().values() if not b.missing())]
T, B, I, H = 5, 3, 4, 6


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


def pair(backend, **config):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, dtype=torch.float64, **config)
    return rnn, rnnjit.compile(rnn, backend=backend)


def assert_equal(got, expected, *, exact):
    if isinstance(expected, PackedSequence):
        assert isinstance(got, PackedSequence)
        for a, b in zip(got[1:], expected[1:], strict=True):
            assert (a is b is None) or torch.equal(a, b)
        got, expected = got.data, expected.data
    matter = [i for i, size in enumerate(expected.shape) if size > 1 and expected.numel()]
    assert [got.stride(i) for i in matter] == [expected.stride(i) for i in matter]
    assert got.is_contiguous() == expected.is_contiguous()
    if exact:
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def assert_agree(backend, rnn, fast, *args, exact=True):
    """Equal outputs and equal gradients through both, from the same seed."""
    results = []
    for module in (rnn, fast):
        torch.manual_seed(1)
        y, h = module(*args)
        data = y.data if isinstance(y, PackedSequence) else y
        leaves = list(module.parameters())
        loss = (data * torch.sin(1 + data)).sum() + (h * torch.cos(h)).sum()
        results.append((y, h, torch.autograd.grad(loss, leaves)))
    for index in range(2):
        assert_equal(results[1][index], results[0][index], exact=exact and backend.name == "eager")
    for got, expected in zip(results[1][2], results[0][2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


CONFIGS = [
    dict(
        zip(("nonlinearity", "bias", "num_layers", "bidirectional", "batch_first"), c, strict=True)
    )
    for c in itertools.product(
        ("tanh", "relu"), (True, False), (1, 3), (False, True), (False, True)
    )
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
def test_dense_unbatched_and_packed(backend, config):
    rnn, fast = pair(backend, **config)
    first = config["batch_first"]
    x = torch.randn(B, T, I).double() if first else torch.randn(T, B, I).double()
    h0 = torch.randn(config["num_layers"] * (1 + config["bidirectional"]), B, H).double()
    single = x[0] if first else x[:, 0]
    p = pack_padded_sequence(x, [2, 5, 3], batch_first=first, enforce_sorted=False)
    for args in ((x,), (x, h0), (single,), (single, h0[:, 0]), (p,), (p, h0)):
        assert_agree(backend, rnn, fast, *args)


@pytest.mark.parametrize("config", [{}, {"batch_first": True}, {"bidirectional": True}])
@pytest.mark.parametrize("p", [0.4, 1.0])
def test_dropout_draws_eagers_masks(backend, config, p):
    rnn, fast = pair(backend, num_layers=3, dropout=p, **config)
    x = torch.randn(4, 4, I).double()
    for given in (x, pack_padded_sequence(x, [4, 4, 2, 1]), x[0]):
        assert_agree(backend, rnn, fast, given)
        rnn.eval(), fast.eval()
        assert_agree(backend, rnn, fast, given)
        rnn.train(), fast.train()


def test_dropout_leaves_the_generator_where_eager_does(backend):
    rnn, fast = pair(backend, num_layers=2, dropout=0.5)
    states = []
    for module in (rnn, fast):
        torch.manual_seed(3)
        module(torch.zeros(T, B, I).double())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


STRANGE = {
    "transposed": lambda: torch.randn(B, T, I).transpose(0, 1),
    "strided": lambda: torch.randn(2 * T, B, 3 * I)[::2, :, ::3],
    "offset": lambda: torch.randn(T * B * I + 7)[7:].view(T, B, I),
    "expanded over time": lambda: torch.randn(1, B, I).expand(T, B, I),
    "expanded over all": lambda: torch.randn(1).expand(T, B, I),
    "features last in memory": lambda: torch.randn(I, B, T).permute(2, 1, 0),
    "flipped": lambda: torch.randn(T, B, I).flip(0),
    "imaginary part of a conjugate": lambda: torch.randn(T, B, I, dtype=torch.cdouble).conj().imag,
    "no batch": lambda: torch.randn(T, 0, I),
    "one of everything": lambda: torch.randn(1, 1, I),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("config", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_strange_inputs_that_eager_takes(backend, name, config):
    rnn, fast = pair(backend, **config)
    x = STRANGE[name]().double()
    assert x.is_neg() == name.startswith("imaginary")
    layers = rnn.num_layers * (1 + rnn.bidirectional)
    h0 = torch.randn(x.shape[1], layers, H).double().transpose(0, 1)
    assert_agree(backend, rnn, fast, x)
    assert_agree(backend, rnn, fast, x, h0)
    assert_agree(backend, rnn, fast, x, torch.zeros(1).double().expand(layers, x.shape[1], H))


def rows(sizes, extra=0, **indices):
    data = torch.randn(sum(sizes) + extra, I).double()
    return PackedSequence(data, torch.tensor(sizes), **indices)


PACKED = {
    "sequences that end at once": lambda: rows([3, 3]),
    "one sequence": lambda: rows([1, 1, 1]),
    "one step": lambda: rows([4]),
    "ragged": lambda: rows([4, 3, 3, 1]),
    "empty steps at the end": lambda: rows([2, 1, 0, 0]),
    "empty batch": lambda: rows([0]),
    "indices": lambda: rows([3, 1], sorted_indices=torch.tensor([2, 0, 1])),
    "transposed data": lambda: PackedSequence(torch.randn(I, 4).double().t(), torch.tensor([3, 1])),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("config", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_strange_packed_inputs_that_eager_takes(backend, name, config):
    rnn, fast = pair(backend, **config)
    given = PACKED[name]()
    layers, batch = rnn.num_layers * (1 + rnn.bidirectional), int(given.batch_sizes[0])
    exact = given.data.is_contiguous()  # torch rounds the product of a transposed matrix otherwise
    assert_agree(backend, rnn, fast, given, exact=exact)
    assert_agree(backend, rnn, fast, given, torch.randn(layers, batch, H).double(), exact=exact)


def test_rows_beyond_the_batch_sizes_are_not_read(backend):
    # Eager agrees in one direction; its other one starts from the last row of all.
    rnn, fast = pair(backend, bidirectional=True)
    given = rows([2, 1], extra=3)
    used = PackedSequence(given.data[:3], given.batch_sizes)
    torch.testing.assert_close(fast(given)[0].data, rnn(used)[0].data)
    one_way, fast = pair(backend)
    assert_agree(backend, one_way, fast, given)


def test_strided_batch_sizes_count_as_what_they_say(backend):
    # Eager reads past the stride.
    rnn, fast = pair(backend)
    given = rows([3, 1])
    strided = given._replace(batch_sizes=torch.tensor([3, 9, 1, 9])[::2])
    torch.testing.assert_close(fast(strided)[0].data, rnn(given)[0].data)


def test_a_list_of_sequences_comes_back_in_its_order(backend):
    rnn, fast = pair(backend, bidirectional=True)
    sequences = [torch.randn(n, I).double() for n in (2, 5, 1)]
    y, h = fast(pack_sequence(sequences, enforce_sorted=False))
    for index, sequence in enumerate(sequences):
        alone_y, alone_h = rnn(sequence)
        torch.testing.assert_close(nn.utils.rnn.unpack_sequence(y)[index], alone_y)
        torch.testing.assert_close(h[:, index], alone_h)


def test_nothing_is_written_to(backend):
    _, fast = pair(backend, num_layers=2, bidirectional=True)
    x, h0 = torch.randn(T, B, I).double(), torch.randn(4, B, H).double()
    p = pack_padded_sequence(x, [5, 3, 1])
    x.requires_grad_(), h0.requires_grad_()
    everything = [x, h0, *p[:2], *fast.parameters()]
    kept = [(t.detach().clone(), t._version) for t in everything]
    grad_h = torch.ones(4, B, H).double()
    for args in ((x, h0), (p, h0)):
        y, h = fast(*args)
        data = y.data if args[0] is p else y
        grad_y = torch.ones_like(data)
        torch.autograd.backward([data, h], [grad_y, grad_h])
        assert torch.equal(grad_y, torch.ones_like(data))
    assert torch.equal(grad_h, torch.ones_like(grad_h))
    for tensor, (value, version) in zip(everything, kept, strict=True):
        assert torch.equal(tensor, value)
        assert tensor._version == version


def test_outputs_share_no_memory_with_each_other_or_the_inputs(backend):
    _, fast = pair(backend)
    x, h0 = torch.randn(1, B, I).double(), torch.randn(1, B, H).double()
    with torch.no_grad():
        y, h = fast(x, h0)
    pointers = [t.untyped_storage().data_ptr() for t in (x, h0, y, h)]
    assert len(set(pointers)) == 4


def test_inference_mode_and_inference_tensors(backend):
    rnn, fast = pair(backend, num_layers=2)
    with torch.inference_mode():
        x = torch.randn(T, B, I).double()
        y, h = fast(x)
        assert y.is_inference()
    with torch.no_grad():
        expected = rnn(x)
        torch.testing.assert_close(fast(x), expected)
    torch.testing.assert_close((y.clone(), h.clone()), tuple(t.detach() for t in expected))
    for module in (rnn, fast):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            module(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_dtype_that_eager_takes_gives_its_bits_through_eager(dtype, nonlinearity):
    torch.manual_seed(0)
    if dtype.is_complex and nonlinearity == "relu":
        pytest.skip("torch has no complex relu")
    rnn = nn.RNN(I, H, 2, nonlinearity, bidirectional=True, dtype=dtype)
    fast = rnnjit.compile(rnn, backend="eager")
    x = torch.randn(T, B, I).to(dtype)
    results = []
    for module in (rnn, fast, rnnjit.compile(rnn, backend=ReferenceBackend())):
        y, h = module(x)
        results.append((y, h, *torch.autograd.grad(y.abs().sum(), module.parameters())))
    for expected, eager, reference in zip(*results, strict=True):
        assert expected.dtype == eager.dtype == reference.dtype == dtype
        torch.testing.assert_close(eager, expected)
        torch.testing.assert_close(reference, expected, rtol=2e-2, atol=6e-2)
    assert torch.equal(results[0][0], results[1][0])
