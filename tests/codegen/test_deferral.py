"""Protects what `auto` leaves to torch's own operators: large weights that are read once a step."""

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit import Problem, RNNSpec
from rnnjit.codegen.deferral import why_torch
from rnnjit.dispatch.choice import choose
from rnnjit.ir import LSTM, RNN_TANH

LARGE, HUGE, VAST = (512, 512), (1024, 1024), (4096, 1024)


def reasons(T, B, sizes=LARGE, *, trains=False, layers=1, dtype=torch.float32, cell=False):
    I, H = sizes
    problem = Problem(dtype, "cpu", T, B, T * B, False, trains, cell=cell)
    return why_torch(RNNSpec(I, H, layers, cell=RNN_TANH), problem)


@pytest.fixture(autouse=True, params=["AVX512", "AVX2"])
def unit(request, monkeypatch):
    """The vector unit that torch says it uses."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


@pytest.fixture(autouse=True)
def threads():
    """Sets torch's threads; one at first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_row_is_left_to_torch_where_one_thread_would_read_the_weights(threads):
    assert reasons(1, 1, HUGE)
    assert reasons(4, 1, HUGE)
    assert not reasons(5, 1, HUGE)
    assert not reasons(1, 2, HUGE)
    assert reasons(1, 1, LARGE)
    assert not reasons(2, 1, LARGE)
    assert not reasons(1, 1, (511, 512))
    assert not reasons(2, 1, HUGE, trains=True)
    threads(2)
    assert not reasons(4, 1, HUGE)
    # Several threads divide such weights between them, if they are large enough.
    assert reasons(1, 1, HUGE)
    assert not reasons(1, 1, (2048, 1024))


def test_training_on_one_row_of_one_step_is_left_to_torch():
    assert reasons(1, 1, LARGE, trains=True)
    assert not reasons(1, 1, (32, 64), trains=True)
    assert not reasons(2, 1, LARGE, trains=True)
    # The weights count in bytes.
    assert not reasons(1, 1, (300, 300), trains=True)
    assert reasons(1, 1, (300, 300), trains=True, dtype=torch.float64)


def test_a_step_of_many_rows_is_left_to_torch(unit, threads):
    few = 8 if unit == "AVX2" else 4  # rows whose weights the kernels read in place
    assert reasons(1, 64, HUGE)
    assert not reasons(2, 64, HUGE)
    assert not reasons(1, 64, LARGE)
    assert not reasons(1, few, HUGE)
    assert reasons(1, few + 1, HUGE)
    assert not reasons(1, 2, VAST)
    assert bool(reasons(1, 4, VAST)) == (unit == "AVX512")
    # The weights of the layers after the first count.
    assert not reasons(1, 64, (1, 1000))
    assert reasons(1, 64, (1, 1000), layers=2)
    threads(2)
    few = 16 if unit == "AVX2" else 4
    assert not reasons(1, few, HUGE)
    assert reasons(1, few + 1, HUGE)


def test_a_training_step_of_many_rows_is_left_to_torch(unit):
    assert not reasons(1, 16, HUGE, trains=True)
    assert reasons(1, 17, HUGE, trains=True)
    assert bool(reasons(1, 17, LARGE, trains=True)) == (unit == "AVX2")
    assert not reasons(1, 17, (300, 300), trains=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_training_step_of_a_layer_that_onednn_packs_too(unit, dtype):
    spec = RNNSpec(1024, 1024, cell=LSTM)

    def left(B, cell=False):
        return bool(why_torch(spec, Problem(dtype, "cpu", 1, B, B, False, True, cell=cell)))

    assert not left(16)
    assert left(33)
    assert left(32, cell=True)
    assert left(32) == (unit == "AVX512" or dtype is torch.float64)


def test_a_cell_of_few_rows_is_left_to_torch(unit):
    """Torch has one operator for it, which autograd records without Python."""
    assert bool(reasons(1, 1, (256, 256), cell=True)) == (unit == "AVX512")
    assert reasons(1, 1, LARGE, cell=True)
    assert not reasons(1, 1, (128, 128), cell=True)
    for size, rows in ((16, 1), (128, 1), (128, 16), (1024, 1)):
        assert reasons(1, rows, (size, size), trains=True, cell=True)
    assert not reasons(1, 64, (128, 128), trains=True, cell=True)
    assert not reasons(1, 16, (128, 128), trains=True)


def test_many_rows_of_a_single_feature_are_left_to_torch():
    assert reasons(5, 4000, (8, 1), trains=True)
    assert not reasons(5, 4000, (8, 1))
    assert reasons(5, 40_000, (8, 1))
    assert not reasons(5, 4000, (8, 2), trains=True)


@pytest.mark.parametrize("trains", [False, True], ids=["forward", "training"])
def test_rows_of_many_inputs_and_a_single_feature_are_left_to_torch(trains):
    assert reasons(4, 33, (512, 1), trains=trains)
    assert not reasons(4, 32, (512, 1), trains=trains)
    assert not reasons(4, 33, (511, 1), trains=trains)
    assert not reasons(4, 33, (512, 2), trains=trains)
    # A layer of four gates gains forward.
    problem = Problem(torch.float32, "cpu", 4, 33, 132, False, trains)
    assert bool(why_torch(RNNSpec(512, 1, cell=LSTM), problem)) == trains


@pytest.mark.parametrize("trains", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("sizes", [(1, 1), (512, 1), LARGE, HUGE])
def test_the_answer_depends_on_sizes_by_powers_of_two(sizes, trains):
    """As `sizes_matter` of False says: one answer then serves all calls of such a class."""
    for low in (1, 2, 4, 8, 16, 32, 64, 1024, 2048):
        some = range(low + 1, 2 * low + 1)
        assert len({bool(reasons(T, 1, sizes, trains=trains)) for T in some}) == 1
        assert len({bool(reasons(1, B, sizes, trains=trains)) for B in some}) == 1


def test_auto_leaves_a_step_of_large_weights_to_torch_and_says_so():
    module, x = rnnjit.compile(nn.RNN(1024, 1024)), torch.randn(1, 64, 1024)
    with torch.no_grad():
        report = str(rnnjit.explain(module, x))
    assert "-> eager" in report
    assert "but defers: a single step is two products for each layer, with 8.4 MB" in report


def test_a_backend_that_is_named_runs_the_call():
    spec = RNNSpec(1024, 1024, 1, cell=RNN_TANH)
    problem = Problem(torch.float32, "cpu", 1, 64, 64, False, False)
    numba = rnnjit.backends()["numba"]
    assert numba.defers(spec, problem)
    assert choose(spec, problem, numba) is numba
    assert choose(spec, problem, None).name == "eager"
