"""Protects the end of a process while threads compute or compile: it comes, without a message."""

import signal

import pytest
from processes import assert_well, program

DAEMONS = """
cases = [known(sys.argv[1], name) for name in SHAPES]

def work(i):
    while True:
        for case in cases:
            case.both() if i % 2 else case.forward()

for i in range(4):
    threading.Thread(target=work, args=(i,), daemon=True).start()
time.sleep(0.2)
print("end")
"""


@pytest.mark.parametrize("backend", ["numba", "tvm"])
def test_daemon_threads_inside_kernels_do_not_hold_up_the_end(backend):
    """It comes, and not by a crash in code that is gone.

    Before Python 3.14, threads that the interpreter leaves behind are unwound when they come back
    to it. Torch's C++ frames, those of eager as well, do not let that pass: then the process is
    aborted, with messages that differ.
    """
    done = program(DAEMONS, backend)
    assert done.stdout == "end\n"
    assert done.returncode in (0, -signal.SIGABRT), done.stderr


AFTERWARDS = """
from concurrent.futures import ThreadPoolExecutor
torch.manual_seed(0)
rnn = nn.RNN(19, 45)
x = torch.randn(5, 13, 19)
expected = rnn(x)[0].detach()
modules = [rnnjit.compile(rnn, backend=backend) for backend in ("numba", "tvm")]
pool = ThreadPoolExecutor(4)

def work(after=True):
    if after:
        threading.main_thread().join()
    for module in modules:
        y, _ = module(x)
        y.sum().backward()
        torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-5)
    os.write(1, b"right\\n")

threading.Thread(target=work).start()
for _ in range(8):
    pool.submit(work, False)
"""


def test_threads_whose_first_calls_come_after_the_main_thread_is_done():
    assert_well(program(AFTERWARDS), "right\n" * 8 + "right")


COMPILING = """
rnn = nn.RNN(3, 5)
daemon = threading.Thread(target=rnnjit.compile(rnn, backend="numba"), args=(torch.zeros(2, 1, 3),))
daemon.daemon = True
if sys.argv[1] == "daemon":
    daemon.start()
    while not any(t.name == "rnnjit: library" and t.is_alive() for t in threading.enumerate()):
        time.sleep(0.01)
else:
    fast = rnnjit.compile(rnn, backend="numba")

    def work():
        threading.main_thread().join()
        torch.testing.assert_close(fast(torch.zeros(2, 1, 3)), rnn(torch.zeros(2, 1, 3)))
        os.write(1, b"right\\n")

    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize(
    ("thread", "said"),
    [pytest.param("daemon", "", marks=pytest.mark.full), ("afterwards", "right")],
)
def test_kernels_that_are_being_compiled_at_the_end(thread, said, tmp_path):
    """The end waits for the compiler; what a daemon goes on to do is as in the test above."""
    done = program(COMPILING, thread, RNNJIT_CACHE_DIR=str(tmp_path))
    if thread == "daemon":
        assert done.returncode in (0, -signal.SIGABRT), done.stderr
    else:
        assert_well(done, said)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".o", ".tile"]
