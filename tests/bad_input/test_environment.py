"""Protects against invalid environment variables, each in its own process."""

import os
import subprocess
import sys

import pytest
from covered import in_full

import rnnjit

# Prints what each way to run a module raises, and how far its results are from eager's.
SCRIPT = """
import sys, warnings, torch, rnnjit
torch.manual_seed(0)
rnn, x = torch.nn.RNN(4, 5), torch.randn(3, 2, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for backend in sys.argv[1:]:
        fast = rnnjit.compile(rnn, backend=backend)
        try:
            y = fast(x)[0]
        except Exception as error:
            print(backend, type(error).__name__, error)
        else:
            print(backend, "close" if torch.allclose(y, rnn(x)[0], atol=1e-6) else "apart")
for warning in caught:
    print("warned", warning.message)
"""


def printed(*backends, **variables):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *backends],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def foreign_instruction_set():
    return "avx2" if os.uname().machine in ("aarch64", "arm64") else "neon"


@pytest.mark.parametrize("value", ["nonsense", *in_full([foreign_instruction_set()])])
def test_an_instruction_set_that_is_not_here_is_refused_and_auto_goes_on(value):
    here = [name for name in ("numba", "tvm") if not rnnjit.backends()[name].missing()]
    said = printed(*here, "auto", RNNJIT_ISA=value)
    for backend in here:
        line = next(line for line in said.splitlines() if line.startswith(f"{backend} ValueError"))
        assert "RNNJIT_ISA must be one of [" in line
        assert line.endswith(f"got {value!r}")
    assert "auto close" in said
    assert "warned backend 'numba' raised ValueError: RNNJIT_ISA must be one of" in said


def test_a_cache_that_is_a_file(tmp_path):
    file = tmp_path / "cache"
    file.write_text("mine")
    said = printed("numba", RNNJIT_CACHE_DIR=str(file))
    assert "numba close" in said
    assert "RNNJIT_CACHE_DIR" in said.partition("warned")[2]
    assert file.read_text() == "mine"


def test_nonsense_for_torch_and_unknown_variables():
    said = printed("numba", "auto", OMP_NUM_THREADS="many", RNNJIT_NONSENSE="1", RNNJIT_ISA="")
    assert said.splitlines() == ["numba close", "auto close"]
