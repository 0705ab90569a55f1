"""Protects first calls from threads with small stacks: compilers run on stacks of our own."""

import pytest
from covered import in_full, in_turn
from processes import assert_well, program

FIRST = """
backend, size = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
rnn = nn.RNN(5, 7, num_layers=2, bidirectional=True)
x = torch.randn(20, 3, 5)
fast = rnnjit.compile(rnn, backend=backend)

def everything(module):
    leaf = x.clone().requires_grad_()
    y, h_n = module(leaf)
    grads = torch.autograd.grad(y.square().sum() + h_n.sum(), [leaf, *module.parameters()])
    packed = module(pack_padded_sequence(x, [20, 9, 1]))[0].data
    return [y.detach(), h_n.detach(), packed.detach(), *grads]

def work(i):
    found = everything(fast)
    assert backend in str(rnnjit.explain(fast, x))
    for again, first in zip(everything(fast), found, strict=True):
        torch.testing.assert_close(again, first)
    results.append(found)

results = []
threading.stack_size(size)
at_once(2, work)
assert threading.stack_size() == size
for found in results:
    for got, right in zip(found, everything(rnn), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
"""

SIZES = [64 << 10, 256 << 10]


@pytest.mark.parametrize(
    ("backend", "size"),
    [*in_full(["eager", "tvm"], SIZES), *in_turn(["numba"], SIZES)],
)
def test_a_first_call_compiles_on_a_large_stack(backend, size, tmp_path):
    assert_well(program(FIRST, backend, size, RNNJIT_CACHE_DIR=str(tmp_path)))


@pytest.mark.full
def test_a_first_call_compiles_by_inductor_on_a_large_stack(tmp_path):
    """Inductor's own cache is kept, for speed: its tracing alone takes more than such a stack."""
    assert_well(program(FIRST, "inductor", 64 << 10, RNNJIT_CACHE_DIR=str(tmp_path)))


@pytest.mark.full
def test_inductor_compiles_everything_on_a_large_stack(tmp_path):
    there = str(tmp_path / "inductor")
    assert_well(program(FIRST, "inductor", 64 << 10, TORCHINDUCTOR_CACHE_DIR=there))
