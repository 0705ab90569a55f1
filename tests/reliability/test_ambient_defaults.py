"""Protects calls under the caller's defaults for new tensors: their results are those without."""

import pytest
from covered import in_full, in_turn
from processes import assert_well, program

DOORS = """
from contextlib import contextmanager, redirect_stderr
import io, tempfile, warnings

backend, ambient = sys.argv[1:3]
tools = sys.argv[3:] == ["tools"]

@contextmanager
def surroundings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its compiler
        if ambient == "context":
            with torch.device("meta"):
                yield
        elif ambient == "device":
            torch.set_default_device("meta")
            yield
            torch.set_default_device(None)
        else:
            torch.set_default_dtype(torch.float64)
            yield
            torch.set_default_dtype(torch.float32)

torch.manual_seed(0)
rnn = nn.RNN(5, 7, num_layers=2, bidirectional=True)
cell = nn.RNNCell(5, 7)
one_way = nn.RNN(5, 7, num_layers=2)
single = nn.RNN(5, 7)
x, h0, frames = torch.randn(20, 3, 5), torch.randn(4, 3, 7), torch.randn(6, 3, 5)
lengths = torch.tensor([20, 11, 1])
packed = pack_padded_sequence(x, lengths)
reset = torch.zeros(20, 3, dtype=torch.bool)
reset[4, 1] = reset[9, 0] = True
of_state = torch.randn(4, 3, 7)

def flat(value):
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in flat(part)]

def trained(module, *arguments):
    leaf = arguments[0].detach().clone().requires_grad_() if torch.is_tensor(arguments[0]) else None
    y, h_n = module(*([leaf] if leaf is not None else arguments[:1]), *arguments[1:])
    loss = flat(y)[0].square().sum() + h_n.sum()
    leaves = [*module.parameters(), *([leaf] if leaf is not None else [])]
    return [*flat(y), h_n, *torch.autograd.grad(loss, leaves)]

def streamed(module):
    stream = rnnjit.Stream(module, 3, backend)
    found = [stream.step(frame) for frame in frames]
    stream.reset(torch.zeros(3, dtype=torch.bool, device="cpu"))
    stream.state = stream.state
    return [*found, stream.state]

def told(module):
    return list(rnnjit.gradient_flow(module, x).norms.values())

def doors():
    fast = rnnjit.compile(rnn, backend=backend)
    yield "first call", flat(fast(x))
    yield "repeated call", flat(fast(x))
    yield "without gradients", flat(torch.no_grad()(fast)(x, h0))
    yield "packed", flat(torch.no_grad()(fast)(packed))
    yield "training", trained(fast, x, h0)
    yield "training, packed", trained(fast, packed)
    leaf = x.clone().requires_grad_()
    first, = torch.autograd.grad(fast(leaf)[0].square().sum(), leaf, create_graph=True)
    yield "twice", torch.autograd.grad(first.square().sum(), leaf)
    yield "resets", flat(fast(x, reset=reset))
    yield "cell", flat(rnnjit.compile(cell, backend=backend)(x[0]))
    yield "stream", streamed(one_way)
    yield "gradient flow", told(single)
    assert backend in str(rnnjit.explain(fast, x))
    if tools:
        with redirect_stderr(io.StringIO()):  # where they say what they do
            tuned = rnnjit.tune(rnnjit.compile(single), x, rounds=1)
            compared = rnnjit.compare(single, x, rounds=1)
        assert "numba" in tuned.calls[0].seconds and not tuned.calls[0].failures
        assert not [result.failure for result in compared.calls[""].results if result.failure]
    if backend == "numba":
        with tempfile.TemporaryDirectory() as place:
            loaded = rnnjit.load_artifact(
                rnnjit.export_artifact(rnn, place + "/a", target="native"))
        yield "artifact", flat(loaded(x)) + flat(loaded(x, h0))

if tools:
    for name in {"tvm", "inductor"} & set(rnnjit.backends()):
        rnnjit.backends()[name].missing = lambda: ["left out of this test"]
with surroundings():
    found = dict(doors())  # the first calls, too
tools = False
expected = dict(doors())
assert found.keys() == expected.keys()
for name, tensors in expected.items():
    assert len(tensors) == len(found[name]) > 0, name
    for got, right in zip(found[name], tensors, strict=True):
        assert (got.dtype, got.device) == (right.dtype, right.device), name
        assert torch.equal(got, right), name
"""

AMBIENTS = ["context", "device", "dtype"]


@pytest.mark.parametrize(
    ("backend", "ambient"),
    [
        # In `make test` the next test runs numba's, and more.
        *in_full(["numba"], AMBIENTS),
        *in_turn(["eager", "tvm", "inductor"], AMBIENTS),
    ],
)
def test_every_door_gives_what_it_gives_without_them(backend, ambient):
    """`torch.device("meta")`, `torch.set_default_device` and `torch.set_default_dtype`."""
    assert_well(program(DOORS, backend, ambient))


@pytest.mark.parametrize("ambient", ["context", *in_full(["dtype"])])
def test_kernels_compiled_under_them_are_right(ambient, tmp_path):
    assert_well(program(DOORS, "numba", ambient, "tools", RNNJIT_CACHE_DIR=str(tmp_path)))
