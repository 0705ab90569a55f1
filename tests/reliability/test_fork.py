"""Protects use after a fork, in parent and child: by os.fork, beside other threads, by servers."""

import sys

import pytest
from covered import in_full
from processes import assert_well, program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

# Torch's own operators on large tensors wait in a child for threads of the parent's. The test does
# without them there; the layers themselves call some.
LARGE = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks amid threads, which are the test
SHAPES["large"] = {"batch_first": True}, (40, 40, 8, 100)
cases = [known(backend, name) for backend in ("numba", "tvm") for name in ("columns", "large")]
reference = [known("eager", "large")]

def check():
    assert torch.get_num_threads() == 2
    for case in cases:
        case.right(case.forward())
        case.right(case.both())
    for case in reference:
        case.forward()
    assert torch.get_num_threads() == 2
"""

GENERATIONS = """
def grandchild():
    check()
    import rnnjit.tools.environment
    assert "forked" in rnnjit.tools.environment.environment().teams

def child():
    check()
    assert in_child(grandchild) == 0
    check()

assert in_child(child) == 0
check()
"""


def test_child_and_grandchild_of_a_process_that_had_a_team():
    assert_well(program(LARGE + GENERATIONS))


AMID = """
stop = threading.Event()

def work(i):
    while i and not stop.is_set():
        for case in cases:
            case.right(case.both())
    if i == 0:
        statuses = [in_child(check) for _ in range(12)]
        stop.set()
        assert statuses == [0] * 12, statuses

at_once(4, work)
check()
"""


def test_forks_while_other_threads_are_inside_kernels():
    assert_well(program(LARGE + AMID))


ARTIFACT = """
import tempfile
torch.manual_seed(0)
rnn, x = torch.nn.RNN(8, 100), torch.randn(40, 40, 8)
with torch.no_grad():
    expected = rnn(x)
with tempfile.TemporaryDirectory() as folder:
    rnnjit.export_artifact(rnn, folder + "/artifact")
    artifact = rnnjit.load_artifact(folder + "/artifact")

def check():
    for found, right in zip(artifact(x), expected, strict=True):
        # By numpy: torch's own operators would wait for threads of the parent's.
        assert abs(found.numpy() - right.numpy()).max() < 1e-5

check()
assert in_child(check) == 0
check()
"""


@pytest.mark.full
def test_an_artifact_in_a_child():
    assert_well(program(ARTIFACT))


SERVER = r"""
import multiprocessing

def work(case):
    for _ in range(3):
        case.right(case.both())
    os.write(1, b"right\n")  # in one piece, beside that of the other process

if __name__ == "__main__":
    faulthandler.cancel_dump_traceback_later()
    context = multiprocessing.get_context(sys.argv[1])
    cases = [known(backend, "slices") for backend in ("numba", "tvm")]
    processes = [context.Process(target=work, args=(case,)) for case in cases]
    for process in processes:
        process.start()
    for process, case in zip(processes, cases):
        process.join(200)
        assert process.exitcode == 0
        case.right(case.both())
"""


@pytest.mark.parametrize("method", ["fork", *in_full(["spawn", "forkserver"])])
def test_processes_that_multiprocessing_starts(method, tmp_path):
    file = tmp_path / "server.py"
    file.write_text("import faulthandler\nfrom crowds import *\n" + SERVER)
    run = f"import runpy; runpy.run_path({str(file)!r}, run_name='__main__')"
    assert_well(program(run, method), "right\nright")
