"""Protects the TVM backend's behaviour: what it declines, costs and leaves unchanged."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.dispatch.fallback import GENERATION
from rnnjit.ir import GRU, LSTM, OPERATIONS, RNN_RELU, RNN_TANH
from rnnjit_tvm import BACKEND

#: Ends with what a test asks of the process after a call; `before` is how it was before.
CALL = """
import os, sys, threading, torch, rnnjit
torch.set_num_threads(1)
rnn = torch.nn.RNN(5, 40)
x = torch.randn(6, 9, 5, requires_grad=True)
rnn(x)[0].sum().backward()

def state():
    tasks = "/proc/self/task"
    threads = len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return threads, affinity, dict(os.environ)

before = state()
y, _ = rnnjit.compile(rnn, backend="tvm")(x)
y.sum().backward()
torch.testing.assert_close(y, rnn(x)[0])
"""


def python(code, cache_directory, **environment):
    """What code printed that was run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "RNNJIT_CACHE_DIR": str(cache_directory), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_imports_no_compiler(tmp_path):
    code = (
        "import sys, rnnjit_tvm; rnnjit_tvm.BACKEND.missing();"
        "print([name for name in ('tvm', 'tvm_ffi', 'llvmlite') if name in sys.modules])"
    )
    assert python(code, tmp_path) == "[]"


@pytest.fixture
def versions(monkeypatch):
    """What is installed, by the name of the distribution; a test may change it."""
    found = {"apache-tvm": "0.27.0.post1", "llvmlite": "0.50.0"}
    monkeypatch.setattr(
        "rnnjit.runtime.packages._installed", lambda package, module: found.get(package)
    )
    GENERATION.advance()  # what is missing does not change in a process otherwise
    yield found
    GENERATION.advance()


def test_it_says_what_to_install(versions):
    assert BACKEND.missing() == []
    versions["apache-tvm"] = "0.28.1"
    (reason,) = BACKEND.missing()
    assert "0.28.1 is installed, >=0.27,<0.28 is needed: pip install 'apache-tvm-ffi>=0.1" in reason
    versions.clear()
    tvm, llvmlite = BACKEND.missing()
    assert tvm.startswith("apache-tvm is not installed: pip install 'apache-tvm-ffi>=0.1")
    assert tvm.endswith("'apache-tvm>=0.27,<0.28'")
    assert llvmlite == "llvmlite is not installed: pip install 'llvmlite>=0.45,<0.51'"


def test_it_lowers_operations_that_there_are():
    assert BACKEND.operations <= OPERATIONS.keys()
    for cell in (RNN_TANH, RNN_RELU, LSTM, GRU):
        assert cell.operations <= BACKEND.operations


def test_a_release_it_is_not_written_for_is_refused(versions):
    versions["apache-tvm"] = "0.20.0"
    module = rnnjit.compile(nn.RNN(2, 3), backend="tvm")
    with pytest.raises(rnnjit.UnsupportedError, match=r"0\.20\.0 is installed"):
        module(torch.randn(1, 1, 2))


@pytest.fixture(scope="module")
def cache_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_first_call_starts_no_thread_and_leaves_affinity_and_environment(cache_directory):
    # TVM's own pool would start a thread for every processor, pin them and have them spin.
    own = {"TVM_BIND_THREADS": "1", "TVM_FFI_DISABLE_TORCH_C_DLPACK": "0"}
    check = (
        "assert 'tvm' in sys.modules; assert state() == before, (state(), before); print('same')"
    )
    assert python(CALL + check, cache_directory, **own) == "same"


def test_a_second_process_does_not_import_tvm(cache_directory):
    # The first one compiled.
    assert python(CALL + "print('tvm' in sys.modules)", cache_directory) == "False"
