"""Protects the CUDA kernels' code, without a GPU: all compile, and persistent ones do not spill."""

import re
import subprocess
import sys
from itertools import product

import pytest
from covered import in_turn
from cuda_cells import DECAY, EVERYTHING, SIGMOID
from folders import ROOT
from own_cells import WIDER_CELLS

from rnnjit.ir import RNN_RELU, RNN_TANH
from rnnjit_cuda import compiler
from rnnjit_cuda.kernels import FAMILIES, KernelKey, variants

SCRIPT = ROOT / "benchmarks" / "cuda_kernels.py"


LARGEST = list(product(FAMILIES, ("forward", "backward")))
#: Those of cells with more gates keep more of each unit in registers. A cell has 10 kinds of
#: kernels, and 4 more backward if it has several states; 4 in all without a product.
CELLS = ["--largest", "--cell", "lstm", "gru", "--arch"]
#: Cells with parameters and row inputs, the last without a product.
OWN = ["--largest", "--cell", "leaky", "peephole", "integrator", "--arch"]
RESETS = ["--largest", "--cell", "tanh-resets", "lstm-resets", "gru-resets", "--arch"]
EXTENTS = [
    pytest.param(["--only", "lstm", "grid", *CELLS, "90"], 3, id="lstm", marks=pytest.mark.full),
    pytest.param(
        ["--only", "leaky", "register", *OWN, "90"], 3, id="leaky", marks=pytest.mark.full
    ),
    pytest.param([*OWN, "90"], 14 + 14 + 4, id="own cells", marks=pytest.mark.full),
    pytest.param([*RESETS, "90"], 3 * 14, id="resets", marks=pytest.mark.full),
    pytest.param([*CELLS, "80", "90"], 2 * (14 + 10), id="cells", marks=pytest.mark.full),
    pytest.param(["--largest", "--arch", "90"], len(LARGEST), id="largest"),
    pytest.param(["--arch", "80", "90"], 2 * len(variants()), id="all", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("flags", "count"), EXTENTS)
def test_kernels_compile_and_no_persistent_one_spills(flags, count):
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{count} kernels; 0 persistent ones spill" in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_fused_and_tanh_is_not_approximate(dtype):
    text = compiler.ptx(KernelKey("block", "forward", dtype, RNN_TANH, 2), (9, 0))
    assert ".target sm_90" in text
    assert "fma.rn.f32" in text
    assert "tanh.approx" not in text
    assert "min.f32" not in text
    assert "max.f32" not in text


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(
    ("cell", "dtype"),
    in_turn([SIGMOID, DECAY, EVERYTHING, WIDER_CELLS[-1]], ["float32", "float64", "float16"]),
    ids=lambda value: getattr(value, "name", value),
)
def test_a_cell_that_no_kernel_was_written_for_is_computed_in_its_dtype(cell, pass_, dtype):
    text = compiler.ptx(KernelKey("step", pass_, dtype, cell), (9, 0))
    assert (".f64" in text) == (dtype == "float64")
    assert not re.search(r"(tanh|sqrt|div|lg2)\.approx|(min|max)\.f(32|64)", text)


def test_machine_code_is_of_one_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path))
    keys = [KernelKey("step", "forward", "float32", cell) for cell in (SIGMOID, DECAY)]
    assert compiler.cubin(keys[0], (8, 0)) != compiler.cubin(keys[1], (8, 0))
    assert len(list(tmp_path.glob("*.o"))) == 2


def test_machine_code_is_the_same_each_time_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "one"))
    key = KernelKey("step", "forward", "float32", RNN_RELU)
    first = compiler.cubin(key, (8, 0))
    assert first[:4] == b"\x7fELF"
    assert len(list((tmp_path / "one").glob("*.o"))) == 1
    monkeypatch.setattr(compiler, "ptx", None)
    assert compiler.cubin(key, (8, 0)) == first
    monkeypatch.undo()
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "two"))
    assert compiler.cubin(key, (8, 0)) == first
