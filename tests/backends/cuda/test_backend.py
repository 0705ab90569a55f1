"""Protects the CUDA backend without a GPU: what it declines, and what having it costs."""

import subprocess
import sys

import pytest
import torch
from cuda_cells import SIGMOID
from own_cells import WIDER_CELLS
from torch import nn

import rnnjit
from rnnjit import Rows
from rnnjit.ir import GRU, LSTM, OPERATIONS, RNN_RELU, RNN_TANH, CellSpec, builder, normal_form
from rnnjit.recurrence.rows import offsets, states_before
from rnnjit.runtime.packages import install
from rnnjit_cuda import BACKEND, availability

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_it_says_that_there_is_no_device():
    (reason,) = BACKEND.missing()
    built = torch.version.cuda is not None
    assert ("sees no CUDA device" if built else "built without CUDA: install") in reason
    module = rnnjit.compile(nn.RNN(2, 3), backend="cuda")
    with pytest.raises(rnnjit.UnsupportedError, match="tensors are on cpu: only cuda"):
        module(torch.randn(1, 1, 2))


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("rnnjit_cuda.availability.find_spec", lambda name: None)
    monkeypatch.setattr("rnnjit.runtime.packages._installed", lambda package, module: None)
    numba_cuda, pathfinder, *others = BACKEND.missing()
    assert numba_cuda == f"numba-cuda is not installed: {install('cuda')}"
    assert pathfinder == f"cuda-pathfinder cannot be imported: {install('cuda')}"
    assert others


def test_it_names_libraries_of_the_toolkit_that_cannot_be_loaded():
    assert availability.without_libraries(availability.LIBRARIES) == ()
    # Any library of CUDA's that no part of the project installs.
    (reason,) = availability.without_libraries(("nvvm", "cufftMp"))
    assert reason.startswith("the CUDA library cufftMp cannot be loaded (")
    assert "pip install 'cuda-toolkit[" in reason


def test_it_declines_devices_before_ampere():
    assert availability.too_old("A100", (8, 0)) == []
    assert availability.too_old("RTX 5090", (12, 0)) == []
    assert availability.too_old("T4", (7, 5)) == [
        "T4 has compute capability 7.5: kernels need 8.0 (Ampere) or later"
    ]


def test_a_driver_out_of_memory_is_torch_s_own_error():
    from cuda.bindings.driver import CUresult

    from rnnjit_cuda.launch import _checked

    with pytest.raises(torch.OutOfMemoryError, match="empty_cache"):
        _checked((CUresult.CUDA_ERROR_OUT_OF_MEMORY, None))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_LAUNCH_FAILED"):
        _checked((CUresult.CUDA_ERROR_LAUNCH_FAILED,))
    assert _checked((CUresult.CUDA_SUCCESS, "kernel")) == "kernel"
    assert _checked((CUresult.CUDA_SUCCESS,)) is None


def test_it_says_what_it_takes():
    assert BACKEND.devices == ("cuda",)
    assert BACKEND.dtypes == (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    assert BACKEND.operations == OPERATIONS.keys()


def test_it_takes_every_cell_in_normal_form():
    for cell in (RNN_TANH, RNN_RELU, SIGMOID, LSTM, GRU, *WIDER_CELLS):
        assert BACKEND.why_not_cell(cell) == []
        assert cell.operations <= BACKEND.operations


def test_it_declines_cells_in_another_form():
    def function(zx, zh, h):
        return builder.relu(zx[0] + zh[0]), zx[0] + zh[0]

    cell = CellSpec.trace(
        function, name="other", gates=["z"], states=["h"], operand=lambda h: builder.tanh(h)
    )
    operand, output = BACKEND.why_not_cell(cell)
    assert operand == "the recurrent operand of cell 'other' is not its first state"
    assert output == "the output of cell 'other' is not its first state"
    assert BACKEND.why_not_cell(normal_form(cell).cell) == []


def test_it_declines_projections_of_what_the_step_reads(monkeypatch):
    monkeypatch.setattr(type(BACKEND), "_device_reasons", lambda self, index: [])
    problem = rnnjit.Problem(torch.float32, "cuda", 1, 1, 1, False, False)
    assert BACKEND.why_not(rnnjit.RNNSpec(2, 3), problem) == []
    assert BACKEND.why_not(rnnjit.RNNSpec(2, 3, proj_size=2, cell=LSTM), problem) == []
    for cell, why in ((RNN_TANH, "proj_size is 2"), (GRU, "reads its first state")):
        (reason,) = BACKEND.why_not(rnnjit.RNNSpec(2, 3, proj_size=2, cell=cell), problem)
        assert why in reason


@pytest.mark.parametrize(
    ("dtype", "H", "B", "packed", "why"),
    [
        (torch.float32, 256, 8, False, "cuDNN too keeps"),
        (torch.float32, 257, 8, False, None),
        (torch.float32, 256, 8, True, None),
        (torch.float64, 64, 8, False, None),
        (torch.float32, 1024, 127, False, None),
        (torch.float32, 1024, 128, False, "products dominate (134,217,728 multiply-adds"),
        (torch.float32, 1024, 128, True, None),
        (torch.float64, 1024, 64, False, "products dominate"),
        (torch.float64, 1024, 128, True, "products dominate"),
        (torch.bfloat16, 1024, 128, False, None),
        (torch.bfloat16, 2048, 128, False, "products dominate"),
    ],
)
def test_it_defers_to_cudnn_where_that_was_measured_to_be_as_quick(dtype, H, B, packed, why):
    # Packed sequences have on average six tenths of the longest's length here.
    N = 60 * B if packed else 100 * B
    problem = rnnjit.Problem(dtype, "cuda", 100, B, N, packed, True)
    reasons = BACKEND.defers(rnnjit.RNNSpec(H, H), problem)
    assert [why in reason for reason in reasons] == ([True] if why else [])


@pytest.mark.parametrize("more", [{"num_layers": 2}, {"bidirectional": True}, {"cell": SIGMOID}])
def test_it_defers_for_no_more_than_was_measured(more):
    problem = rnnjit.Problem(torch.float32, "cuda", 100, 8, 800, False, True)
    assert BACKEND.defers(rnnjit.RNNSpec(64, 64, **more), problem) == []


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=lambda cell: cell.name)
def test_it_defers_where_cudnn_has_a_layer_that_was_not_measured(cell):
    for packed, dtype in ((False, torch.float32), (True, torch.float64)):
        problem = rnnjit.Problem(dtype, "cuda", 100, 8, 700, packed, True)
        (reason,) = BACKEND.defers(rnnjit.RNNSpec(512, 512, cell=cell), problem)
        assert reason == f"layers of cell '{cell.name}' have not been measured against cuDNN's"


def test_importing_it_imports_no_compiler():
    code = (
        "import sys, rnnjit_cuda; rnnjit_cuda.BACKEND.missing();"
        "print([name for name in ('numba', 'llvmlite', 'cuda.core') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_offsets_lie_where_they_are_asked_for_whatever_the_default_device_is():
    rows = Rows(2, 2, 3, torch.tensor([2, 1]))
    with torch.device("meta"):
        found = offsets(rows, torch.device("cpu"))
    assert found.tolist() == [0, 2, 3]


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
