"""The CUDA backend where there is no GPU: what it declines, and what it costs to have it."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit import Rows
from rnnjit.recurrence.rows import offsets, states_before
from rnnjit_cuda import BACKEND

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_it_says_that_there_is_no_device():
    assert BACKEND.missing() == ["torch sees no CUDA device"]
    module = rnnjit.compile(nn.RNN(2, 3), backend="cuda")
    with pytest.raises(rnnjit.UnsupportedError, match="no CUDA device"):
        module(torch.randn(1, 1, 2))


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("rnnjit_cuda.backend.find_spec", lambda name: None)
    (reason,) = BACKEND.missing()
    assert "pip install 'rnnjit[cuda]'" in reason


def test_it_declines_what_it_cannot_do():
    spec = rnnjit.RNNSpec(2, 3)
    problem = rnnjit.Problem(torch.complex64, "cpu", 1, 1, 1, False, False)
    device, dtype = BACKEND.why_not(spec, problem)
    assert "cpu" in device
    assert "complex64" in dtype
    odd = rnnjit.RNNSpec(2, 3, nonlinearity="sine")
    assert any("sine" in reason for reason in BACKEND.why_not(odd, problem))


def test_importing_it_imports_no_compiler():
    code = (
        "import sys, rnnjit_cuda; rnnjit_cuda.BACKEND.missing();"
        "print([name for name in ('numba', 'llvmlite', 'cuda.core') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 4, 4, 1], [2, 1, 1, 1], [1], [4]], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("direction", [0, 1])
def test_states_before_each_step(sizes, packed, direction):
    if not packed and len(set(sizes)) > 1:
        pytest.skip("a dense batch has steps of one size")
    rows = Rows(len(sizes), sizes[0], sum(sizes), torch.tensor(sizes) if packed else None)
    starts = offsets(rows, torch.device("cpu"))
    assert starts.tolist() == [sum(sizes[:t]) for t in range(len(sizes) + 1)]
    y = torch.arange(rows.N).float()[:, None] + 100
    h0 = torch.arange(rows.B).float()[:, None]
    expected = []
    for t, size in enumerate(sizes):
        before = t - 1 if direction == 0 else t + 1
        for b in range(size):
            linked = 0 <= before < len(sizes) and b < sizes[before]
            expected.append(100.0 + sum(sizes[:before]) + b if linked else float(b))
    assert states_before(rows, starts, y, h0, direction).flatten().tolist() == expected
