"""Protects against Ctrl-C in calls, compilers and measurements: process and caches stay usable."""

import sys

import pytest
from processes import assert_well, program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sets timers")

CALLS = """
import random
random.seed(0)
cases = [known(sys.argv[1], name) for name in SHAPES]
module = rnnjit.compile(nn.RNN(8, 30, 2), backend=sys.argv[1]).eval()
frames = torch.randn(3, 1, 8)

def work():
    for _ in range(100_000):
        for case in cases:
            case.forward()
            case.both()

def steps():
    while True:
        stream.step(frames[0])

for n in range(40):
    stream = rnnjit.Stream(module)
    assert interrupted(random.uniform(0.001, 0.03), steps if n % 2 else work)
    for case in cases:
        case.right(case.forward())
        case.right(case.both())
    stream.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([stream.step(x) for x in frames]), module(frames)[0])
"""


BACKENDS = ["numba", pytest.param("tvm", marks=pytest.mark.full)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_anywhere_in_calls_and_steps(backend):
    assert_well(program(CALLS, backend))


LONG = """
for backend in ("numba", "tvm"):
    torch.set_num_threads(1)
    rnn = nn.RNN(16, 256).double()
    fast = rnnjit.compile(rnn, backend=backend)
    x = torch.randn(6000, 2, 16, dtype=torch.float64, requires_grad=True)
    fast(x[:2])[0].sum().backward()
    finished = []

    def kernel():
        time.sleep(0)
        fast(x)
        finished.append(None)

    threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            kernel()
    except KeyboardInterrupt:
        pass
    for part in (x[:5], x[:300]):
        torch.testing.assert_close(fast(part), rnn(part), rtol=1e-9, atol=1e-11)
"""


def test_ctrl_c_in_a_long_call():
    assert_well(program(LONG))


COLD = """
import warnings
from rnnjit.runtime import object_cache
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork amid threads, which is the test
backend = sys.argv[1]
torch.manual_seed(0)
rnn = nn.RNN(19, 45)
x = torch.randn(5, 13, 19)
expected = rnn(x)[0].detach()
fast = rnnjit.compile(rnn, backend=backend)

def work(i=0):
    y, _ = fast(x)
    y.sum().backward()
    # By torch.testing it would be imported more, which a fork does not wait for.
    assert (y.detach() - expected).abs().max() < 1e-5

others = threading.Thread(target=at_once, args=(15, work))
others.start()
for _ in range(3):
    assert interrupted(0.2, work)
assert not list(object_cache.directory().glob("*.o")), "the compilers were done before the fork"
assert in_child(work) == 0
work()
others.join()
assert len(list(object_cache.directory().glob("*.o"))) == 1
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_calls_at_once_with_nothing_compiled_amid_ctrl_c_and_a_fork(backend, tmp_path):
    """One thread is interrupted and then forks, while all wait for the same compilers."""
    assert_well(program(COLD, backend, RNNJIT_CACHE_DIR=str(tmp_path)))
    tiles = [".tile"] if backend == "numba" else []
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".o", *tiles]
    assert_well(program(COLD.partition("others")[0] + "work()", backend, RNNJIT_CACHE_DIR=tmp_path))


TUNE = """
import gc
case = known("auto", "slices")
before = torch.get_rng_state()
for seconds in (0.02, 0.05, 0.1):
    assert interrupted(seconds, lambda: rnnjit.tune(case.fast, case.x, rounds=10**6))
    assert gc.isenabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert not rnnjit.explain(case.fast, case.x).calls[0].seconds
    case.right(case.both())
assert "numba" in rnnjit.tune(case.fast, case.x, rounds=1).calls[0].seconds
case.right(case.both(), exact=False)
"""


@pytest.mark.full
def test_ctrl_c_while_backends_are_measured():
    assert_well(program(TUNE))
