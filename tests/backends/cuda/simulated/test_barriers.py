"""Protects the barriers of the CUDA kernels: a kernel without one of them gives other bits."""

from itertools import product
from typing import Any

import pytest
from cuda_calls import Call, Case, launch

from rnnjit.ir import RNN_TANH
from rnnjit_cuda import kernels
from rnnjit_cuda.kernels import KernelKey

#: One kernel of each family and pass.
SAMPLES = [
    KernelKey(family, pass_, "float64", RNN_TANH, 4)
    for family, pass_ in product(("block", "grid", "stream"), ("forward", "backward"))
] + [KernelKey("register", d, "float64", RNN_TANH, reach=32) for d in ("forward", "backward")]
#: One of them at least shows that a barrier is gone.
SEEDS = range(12)
#: With 3 tiles of columns, `SAMPLES` have several warps in all that a block does, and the grid's
#: have several splits of k and several blocks.
SHARED = Case(65, 4, 2, 1, True)


def outcome(key: KernelKey, **how: Any) -> bytes:
    """All bits that a kernel writes, of `SHARED`."""
    call = Call(SHARED, key.dtype, key.cell)
    launch(key, call, tiles=3, **how)
    written = (call.y, call.h_n) if key.pass_ == "forward" else (call.dz, call.grad_h0)
    return b"".join(tensor.bits.tobytes() for tensor in written)


@pytest.mark.parametrize("key", SAMPLES, ids=str)
def test_the_order_of_threads_changes_no_bit(key):
    assert len({outcome(key, seed=seed) for seed in SEEDS[:4]}) == 1


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, id=str(key), marks=() if index % 3 == 0 else pytest.mark.full)
        for index, key in enumerate(SAMPLES)
    ],
)
def test_every_barrier_of_a_block_is_missed_when_it_is_gone(key):
    right, call = outcome(key), Call(SHARED, key.dtype, key.cell)
    sites = launch(key, call, tiles=3)
    assert len(sites) >= 2
    for site in sites:
        assert any(outcome(key, seed=seed, omit=site) != right for seed in SEEDS), site


@pytest.mark.parametrize(
    "key", [key for key in SAMPLES if key.family in ("grid", "stream")], ids=str
)
def test_the_barrier_of_the_grid_is_missed_when_it_is_gone(key, monkeypatch):
    from rnnjit_cuda import grid_sync

    right = outcome(key)
    monkeypatch.setattr(grid_sync, "arrived", lambda counters, index: 1 << 60)
    assert any(outcome(key, seed=seed) != right for seed in SEEDS)


def test_blocks_that_wait_for_ever_are_an_error(monkeypatch):
    from rnnjit_cuda import grid_sync

    monkeypatch.setattr(grid_sync, "arrive", lambda counters, index: None)
    with pytest.raises(RuntimeError, match="deadlock"):
        outcome(SAMPLES[2])


@pytest.mark.parametrize("key", SAMPLES, ids=str)
def test_no_kernel_runs_in_less_shared_memory(key, monkeypatch):
    whole = kernels.shared_bytes
    monkeypatch.setattr(kernels, "shared_bytes", lambda *sizes: whole(*sizes) - 16)
    with pytest.raises((IndexError, ValueError)):
        outcome(key)
