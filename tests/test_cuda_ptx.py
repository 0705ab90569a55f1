"""Every CUDA kernel compiles without a GPU, and the persistent ones stay in registers."""

import subprocess
import sys
from pathlib import Path

import pytest

from rnnjit_cuda import compiler
from rnnjit_cuda.kernels import KernelKey, variants

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cuda_kernels.py"


def test_every_kernel_compiles_and_no_persistent_one_spills():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--arch", "80", "90"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{2 * len(variants())} kernels; 0 persistent ones spill" in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_fused_and_tanh_is_not_approximate(dtype):
    text = compiler.ptx(KernelKey("block", "forward", dtype, "tanh", 2), (9, 0))
    assert ".target sm_90" in text
    assert "fma.rn.f32" in text
    assert "tanh.approx" not in text
    assert "min.f32" not in text
    assert "max.f32" not in text


def test_machine_code_is_the_same_each_time_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "one"))
    key = KernelKey("step", "forward", "float32", "relu")
    first = compiler.cubin(key, (8, 0))
    assert first[:4] == b"\x7fELF"
    assert len(list((tmp_path / "one").glob("*.o"))) == 1
    monkeypatch.setattr(compiler, "ptx", None)
    assert compiler.cubin(key, (8, 0)) == first
    monkeypatch.undo()
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "two"))
    assert compiler.cubin(key, (8, 0)) == first
