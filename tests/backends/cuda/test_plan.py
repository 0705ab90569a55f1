"""Protects the CUDA planner, for GPUs that need not be there."""

import math

import pytest
from own_cells import WIDER_CELLS

from rnnjit import LayerSpec, Rows
from rnnjit.ir import GRU, LSTM, RNN_TANH
from rnnjit_cuda import kernels
from rnnjit_cuda.device import DeviceProperties
from rnnjit_cuda.executor import recurrence
from rnnjit_cuda.kernels import FAMILIES
from rnnjit_cuda.launch import SimulatedLauncher
from rnnjit_cuda.plan import plan, why_not

# Compute capability, multiprocessors, shared memory of a block and of a multiprocessor, threads:
# from NVIDIA's "CUDA C++ Programming Guide", tables of compute capabilities, and data sheets.
DEVICES = {
    "A100": DeviceProperties((8, 0), 108, 166_912, 167_936, 2048),
    "H100": DeviceProperties((9, 0), 132, 232_448, 233_472, 2048),
    "RTX 4060": DeviceProperties((8, 9), 24, 101_376, 102_400, 1536),
}
DTYPES = ("float32", "float64", "bfloat16", "float16")
OWN = {cell.name: cell for cell in WIDER_CELLS}


def layer(H, D=1, cell=RNN_TANH, P=0):
    return LayerSpec(cell, 32, H, D, True, P)


def planned(
    H, B, device="H100", dtype="float32", D=1, pass_="forward", among=FAMILIES, cell=RNN_TANH
):
    return plan(layer(H, D, cell), B, dtype, pass_, DEVICES[device], among)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("among", [FAMILIES, *((name,) for name in FAMILIES)], ids="-".join)
@pytest.mark.parametrize(
    "cell", [RNN_TANH, LSTM, GRU, OWN["leaky rate"], OWN["independent"]], ids=lambda cell: cell.name
)
def test_plans_respect_the_device(device, dtype, pass_, among, cell):
    limits = DEVICES[device]
    kinds = set(kernels.variants([cell]))
    for H in (1, 4, 33, 64, 128, 200, 256, 384, 512, 1000, 1024, 2048, 5000):
        for B in (1, 2, 7, 32, 128, 1000):
            for D in (1, 2):
                found = planned(H, B, device, dtype, D, pass_, among, cell)
                key = found.key
                assert key in kinds
                assert key.family in (*among, "step")
                assert (key.dtype, key.pass_, key.cell) == (dtype, pass_, cell)
                assert 0 < found.threads <= 1024
                assert found.threads % 32 == 0
                assert found.shared <= limits.shared_per_block
                if key.family == "block":
                    assert found.grid[0] * key.rows >= B > (found.grid[0] - 1) * key.rows
                    assert found.grid[1] == D
                if key.family == "register" and cell.has_product:
                    assert found.grid == (B, D, 1)
                elif key.family == "register":
                    assert found.grid[1:] == (D, 1)
                    assert 0 <= found.grid[0] * found.threads - B * H < found.threads
                if key.family in ("grid", "stream"):
                    assert found.grid[0] * found.part.columns >= H
                    assert found.grid[1] == D
                    assert (
                        found.grid[2] * found.part.slab >= B > (found.grid[2] - 1) * found.part.slab
                    )
                    assert found.part.slab % key.rows == 0
                    assert math.prod(found.grid) <= limits.multiprocessors


def test_small_layers_keep_their_weights_in_registers():
    for H, reach in ((1, 8), (32, 8), (33, 16), (64, 16), (128, 32)):
        found = planned(H, 8)
        assert (found.key.family, found.key.reach) == ("register", reach)
        assert 4 * H <= found.threads <= 4 * H + 31


def test_layers_of_many_sequences_keep_their_weights_in_each_block():
    for H in (130, 200):
        assert planned(H, 132).key.family == "block"
        assert planned(H, 132).shared > H * H * 4


def test_the_block_local_kernels_end_where_shared_memory_does():
    largest = {
        device: max(H for H in range(1, 400) if planned(H, 1, device, among=("block",)).shared)
        for device in DEVICES
    }
    assert largest["RTX 4060"] < largest["A100"] < largest["H100"]
    for device, H in largest.items():
        limit = DEVICES[device].shared_per_block
        assert 0.9 * limit < H * H * 4 + 4 * H * 4 <= limit


def test_larger_layers_share_their_weights_over_the_grid():
    for H in (384, 512, 1024, 2048):
        found = planned(H, 1)
        assert found.key.family == "grid"
        assert found.grid[0] > 32
    assert planned(2048, 1, "RTX 4060").key.family == "step"


def test_weights_that_no_chip_holds_are_read_in_each_step():
    assert planned(4096, 1).key.family == "stream"
    assert planned(2048, 1, dtype="float64").key.family == "stream"
    assert planned(2048, 1, dtype="float64").shared < 2**16


@pytest.mark.parametrize(
    ("T", "among", "name"),
    [(7, FAMILIES, "step"), (8, FAMILIES, "stream"), (1, ("stream",), "stream")],
)
def test_weights_are_not_copied_for_a_few_steps(T, among, name):
    launcher = SimulatedLauncher(DEVICES["H100"])
    found = recurrence(layer(4096), Rows(T, 1, T), "float32", "forward", launcher, among)
    assert found._plan.key.family == name


def test_a_family_that_was_asked_for_is_taken_where_it_fits():
    for name in FAMILIES:
        assert planned(100, 3, among=(name,)).key.family == name


def test_work_that_fills_the_device_is_left_to_matrix_products():
    assert planned(2048, 512).key.family == "step"


def test_rows_share_a_pass_over_the_weights_where_there_are_many():
    assert planned(64, 8).key.rows == 1
    assert planned(128, 4000).key.rows > 1
    assert planned(512, 32).key.rows > 1


def test_asking_for_what_cannot_be_had_gives_what_always_works():
    assert planned(5000, 1, among=("block",)).key.family == "step"
    assert planned(64, 1, among=("step",)).key.family == "step"


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=lambda cell: cell.name)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_more_gates_leave_room_for_fewer_hidden_units(cell, pass_):
    for H, reach in ((1, 4), (32, 4), (33, 8), (64, 8)):
        found = planned(H, 8, pass_=pass_, cell=cell)
        assert (found.key.family, found.key.reach) == ("register", reach)
    assert planned(65, 8, pass_=pass_, among=("register",), cell=cell).key.family == "step"
    largest = max(
        H
        for H in range(1, 300)
        if planned(H, 1, pass_=pass_, among=("block",), cell=cell).key.family == "block"
    )
    # A square of H for each gate in 227 KiB, and some room for what is computed with.
    whole = (232_448 / 4 / len(cell.gates)) ** 0.5
    assert 0.85 * whole < largest < whole
    assert planned(512, 1, pass_=pass_, cell=cell).key.family == "grid"
    assert planned(2048, 1, pass_=pass_, cell=cell).key.family == "stream"


def test_a_grid_s_block_holds_at_most_32_units_of_four_gates_forward():
    key = kernels.KernelKey("grid", "forward", "float32", LSTM, 1)
    assert kernels.share(key, 4096, 32, 1).columns == 32
    with pytest.raises(ValueError, match="16 warps in a block at most, and would need 20"):
        kernels.share(key, 4096, 40, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_single_steps_have_a_projection(family):
    projected = layer(20, cell=LSTM, P=8)
    found = plan(projected, 4, "float32", "forward", DEVICES["H100"], (family,))
    assert found.key.family == "step"
    reason = why_not(family, projected, 4, "float32", "forward", DEVICES["H100"])
    assert (reason is None) == (family == "step")


def test_a_cell_without_a_product_has_a_thread_for_each_unit_whatever_its_size():
    for H, B in ((1, 1), (700, 3), (20_000, 64)):
        for pass_ in ("forward", "backward"):
            found = planned(H, B, pass_=pass_, cell=OWN["independent"])
            assert (found.key.family, found.shared) == ("register", 0)
    for family in ("block", "grid", "stream"):
        taken = layer(20, cell=OWN["independent"])
        assert planned(20, 3, among=(family,), cell=OWN["independent"]).key.family == "step"
        reason = why_not(family, taken, 3, "float32", "forward", DEVICES["H100"])
        assert reason == "cell 'independent' has no recurrent product, and so no weights to keep"


@pytest.mark.parametrize(
    ("family", "H", "why"),
    [
        ("register", 65, "65 hidden units of 4 gates: the registers of a block hold the weights"),
        ("block", 200, "need 652,800 of 232,448 bytes of shared memory"),
        ("grid", 4096, "a block's 32 units need 2,099,200 of 232,448 bytes of shared memory"),
        ("stream", 60_000, "132 multiprocessors have too few warps"),
        ("stream", 2048, None),
        ("step", 60_000, None),
    ],
)
def test_it_says_why_a_family_has_no_room(family, H, why):
    reason = why_not(family, layer(H, cell=LSTM), 1, "float32", "forward", DEVICES["H100"])
    assert reason is None if why is None else why in reason
