"""Protects concurrent calls from Python's threads: the same bits as alone, and no deadlock."""

import sys

import pytest
from processes import assert_well, program

# Both run on the same threads, by the same code.
BACKENDS = ["numba", pytest.param("tvm", marks=pytest.mark.full)]
linux = pytest.mark.skipif(sys.platform != "linux", reason="pins a process to a core")


SIXTEEN = """
backends, calls, exact = sys.argv[1].split(), int(sys.argv[2]), sys.argv[3] == "exact"
cases = [known(backend, name, exact=exact) for backend in backends for name in SHAPES]
own = [[copy.deepcopy(case.fast) for case in cases] for _ in range(16)]

def work(i):
    for n in range(calls):
        k = (i + n) % len(cases)
        case, separate = cases[k], own[i][k]
        case.right(case.forward(), exact)
        case.right(case.both(), exact)
        case.right(case.forward(separate), exact)
        case.right(case.both(separate), exact)

at_once(16, work)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_threads_get_the_bits_that_one_gets(backend):
    """2,000 calls of each kind: forward and both ways, of shared modules and of separate ones."""
    assert_well(program(SIXTEEN, backend, 125, "exact"))


@pytest.mark.full
def test_sixteen_threads_on_backends_that_promise_no_bits():
    assert_well(program(SIXTEEN, "inductor eager", 4, "close"))


FIRST = """
from importlib import import_module
backend = sys.argv[1]
torch.manual_seed(0)
rnn = nn.RNN(19, 45)
x = torch.randn(5, 13, 19)
fast = rnnjit.compile(rnn, backend=backend)
expected = rnn(x)[0]

def work(i):
    y, _ = fast(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)

created = []
library = import_module(f"rnnjit_{backend}.library")
Library = library.Library
library.Library = lambda *args: created.append(args) or Library(*args)
at_once(16, work)
assert len(created) == 1, f"kernels were loaded {len(created)} times"
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_first_calls_at_once_load_the_kernels_once(backend):
    assert_well(program(FIRST, backend))


COUNTS = """
cases = [known(backend, name) for backend in ("numba", "tvm") for name in SHAPES]

def work(i):
    for n in range(6):
        for case in cases:
            # Of the calling thread; more of them than cores, too.
            torch.set_num_threads((1, 2, 3, 5, 8)[(i + n) % 5])
            case.right(case.forward())
            case.right(case.both())

at_once(4, work)
work(0)
"""


def test_the_number_of_threads_changes_between_calls():
    assert_well(program(COUNTS))


ONE_CORE = """
for threads in (1, 4):
    for backend in ("numba", "tvm"):
        for name in SHAPES:
            case = known(backend, name, threads)
            at_once(2, lambda i: [case.right(case.both()) for _ in range(10)])
assert len(os.sched_getaffinity(0)) == 1
"""


@linux
def test_a_process_on_one_core_does_not_wait_for_ever_at_a_barrier():
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    assert_well(program(pin + ONE_CORE, OMP_NUM_THREADS="4"))


TEAMS = """
for backend in ("numba", "tvm"):
    for name in SHAPES:
        case = known(backend, name, threads=4)
        at_once(2, lambda i: case.right(case.both()))
"""


@pytest.mark.parametrize(
    "limit", ["OMP_THREAD_LIMIT", pytest.param("OMP_MAX_ACTIVE_LEVELS", marks=pytest.mark.full)]
)
def test_openmp_grants_fewer_threads_than_asked_for(limit):
    assert_well(program(TEAMS, OMP_DYNAMIC="true", **{limit: "2" if "LIMIT" in limit else "0"}))


ELSEWHERE = """
cases = [known(backend, name) for backend in ("numba", "tvm") for name in SHAPES]
for case in cases:
    graphs = [case.graph() for _ in range(8)]
    one = case.graph()

    def work(i):
        case.right(case.backward(*graphs[i]))
        grads = torch.autograd.grad(one[1], one[0], case.alone[:2], retain_graph=True)
        case.right([*case.alone[:2], *grads])

    at_once(8, work)
"""


def test_graphs_of_one_thread_are_walked_back_by_others():
    """Each its own graph, and all of them one graph at the same time."""
    assert_well(program(ELSEWHERE))


LAYERS = """
import numba, numpy
from numba.np.ufunc import parallel

cases = [known(backend, name) for backend in ("numba", "tvm") for name in ("slices", "columns")]
at_once(4, lambda i: [case.right(case.both()) for case in cases])
assert not parallel._is_initialized, "a threading layer of numba's was launched"

if sys.argv[1:] == ["workqueue"]:
    @numba.njit(parallel=True)
    def total(values):
        result = 0.0
        for i in numba.prange(len(values)):
            result += values[i]
        return result

    def work(i):
        for case in cases:
            if i == 0:  # the one that this layer of numba's allows
                assert total(numpy.ones(1000)) == 1000
            case.right(case.both())

    at_once(4, work)
    assert parallel._is_initialized
"""


@pytest.mark.parametrize(
    "layer",
    ["workqueue", *(pytest.param(n, marks=pytest.mark.full) for n in ("omp", "tbb", "nonsense"))],
)
def test_no_threading_layer_of_numbas_takes_part(layer):
    """Kernels run on torch's threads, also while the application runs loops on numba's own."""
    assert_well(program(LAYERS, layer, NUMBA_THREADING_LAYER=layer))


ALONE = """
from rnnjit.runtime import openmp
assert openmp.most_threads(4) == 4 and not rnnjit.tools.environment.environment().teams
openmp.openmp = lambda: None
assert openmp.most_threads(4) == 1
assert "GOMP_parallel" in rnnjit.tools.environment.environment().teams
for backend in ("numba", "tvm"):
    for name in SHAPES:
        known(backend, name)
"""


def test_without_gnu_openmp_kernels_run_on_one_thread_and_that_is_said():
    assert_well(program("import rnnjit.tools.environment\n" + ALONE))


SURROUNDINGS = """
case = known("numba", "slices")
fast, wanted = case.fast, ("numba", "tvm", "eager", "auto")
stop = threading.Event()

def work(i):
    if i:
        while not stop.is_set():
            case.right(case.forward(), exact=False)
            leaves, outputs = case.graph()
            case.right(case.backward(leaves[:1], outputs), exact=False)
        return
    for n in range(300):
        fast.train(n % 2 == 0)
        fast.backend = wanted[n % len(wanted)]
        fast.weight_hh_l0 = nn.Parameter(fast.weight_hh_l0.detach().clone())
        time.sleep(0.001)
    stop.set()

at_once(4, work)
fast.backend = "numba"
case.right(case.both())
"""


def test_mode_backend_and_weights_are_assigned_by_another_thread():
    assert_well(program(SURROUNDINGS))


WEIGHTS = """
case = known(sys.argv[1], "columns")
fast, old = case.fast, case.fast.weight_hh_l0
new = nn.Parameter(old.detach() * 0.5)
fast.weight_hh_l0 = new
halved = case.both()
assert not torch.equal(halved[0], case.alone[0])
stop = threading.Event()

def work(i):
    while i and not stop.is_set():
        y, _ = case.forward()
        assert any(torch.equal(y, results[0]) for results in (halved, case.alone))
    for n in range(0 if i else 400):
        fast.weight_hh_l0 = (old, new)[n % 2]
        time.sleep(0.001)
    stop.set()

at_once(4, work)
"""


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_that_another_thread_replaces_is_the_old_or_the_new(backend):
    assert_well(program(WEIGHTS, backend))
