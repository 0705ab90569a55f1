"""Protects the CUDA kernels of cells other than Elman's, in the simulator, in float64's light."""

from itertools import product

import pytest
import torch
from cuda_layers import SMALL, Simulated, Watched, check, layer_of, results

from rnnjit.ir import GRU, LSTM, CellSpec, builder
from rnnjit_cuda import kernels
from rnnjit_cuda.kernels import CELL_FAMILIES

PERSISTENT = [family for family in CELL_FAMILIES if family != "step"]
CALLS = {
    "lstm-f32": layer_of(LSTM, 9, torch.float32, (5, 3, 3, 1), D=2),
    "gru-f64": layer_of(GRU, 20, sizes=(3, 3, 3), D=2, given=(True, False)),
    "lstm-bf16": layer_of(LSTM, 7, torch.bfloat16, D=2, given=(False, True, False)),
    "gru-f16": layer_of(GRU, 5, torch.float16, (4, 2, 1), bias=False),
    "lstm-one": layer_of(LSTM, 1, sizes=(1,), bias=False, given=(False, False, True)),
    "gru-one": layer_of(GRU, 1, torch.float32, (1,), given=(False, True)),
}
#: More hidden units than a tile, sequences than a slab, and steps than are loaded ahead.
LARGE = {
    "lstm-33": layer_of(LSTM, 33, torch.float32, (9, 9, 7, 7, 2), D=2),
    "gru-64": layer_of(GRU, 64, torch.float32, (6, 5, 4, 3, 2)),
    "lstm-40-f64": layer_of(LSTM, 40, sizes=(3,) * 4, D=2),
    "gru-33-f16": layer_of(GRU, 33, torch.float16, (9, 9, 1)),
    "gru-45-bf16": layer_of(GRU, 45, torch.bfloat16, (4, 4)),
}
PROJECTED = {
    "f32": layer_of(LSTM, 9, torch.float32, (5, 3, 3, 1), D=2, P=4),
    "f64": layer_of(LSTM, 6, sizes=(3, 3), P=6, bias=False, given=(False, True, False)),
    "bf16": layer_of(LSTM, 8, torch.bfloat16, (3, 2), P=2, given=(True, False, True)),
}


def _many(zx, zh, h, c, m):
    """Five gates, one of them with its parts apart, three states, and all operands read."""
    i, f = builder.sigmoid(zx[0] + zh[0]), builder.sigmoid(zx[1] + zh[1])
    g, o = builder.tanh(zx[2] + i * zh[2]), builder.sigmoid(zx[3] + zh[3])
    m = 0.5 * m + builder.tanh(zx[4] + zh[4]) * 0.25
    c = f * c + (1.0 - f) * g + 0.1 * m
    h = o * builder.tanh(c) + 0.3 * h
    return h, h, c, m


MANY = CellSpec.trace(_many, name="many", gates=list("abcde"), states=["h", "c", "m"])


@pytest.fixture(scope="module")
def backends():
    return {family: Simulated(family) for family in CELL_FAMILIES}


def cases():
    """Half of the pairs of a family and a call; the rest is `full`."""
    for (f, family), (c, name) in product(enumerate(CELL_FAMILIES), enumerate(CALLS)):
        marks = () if (f + c) % 2 == 0 else pytest.mark.full
        yield pytest.param(family, CALLS[name], id=f"{family}-{name}", marks=marks)
    for family, name in product(PERSISTENT, LARGE):
        yield pytest.param(family, LARGE[name], id=f"{family}-{name}", marks=pytest.mark.full)


@pytest.mark.parametrize(("family", "call"), list(cases()))
def test_layers(family, call, backends):
    check(backends[family], call)


@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("family", CELL_FAMILIES)
def test_empty_batches(family, P, backends):
    call = layer_of(LSTM, 4, torch.float32, (0, 0), D=2, P=P)
    found = results(backends[family], call)
    assert found["grad_x"].shape == (0, 3)
    assert all(not each.any() for name, each in found.items() if name.startswith("grad_weight"))


@pytest.mark.parametrize("call", PROJECTED.values(), ids=PROJECTED.keys())
def test_projections(call, backends):
    check(backends["step"], call)


@pytest.mark.parametrize("family", CELL_FAMILIES)
def test_a_cell_that_no_kernel_was_written_for(family, backends):
    given = (True, True, False, True)
    check(backends[family], layer_of(MANY, 6, torch.float32, (4, 3, 1), D=2, given=given))


def test_the_family_that_was_asked_for_runs(backends):
    for (family, backend), cell, pass_ in product(
        backends.items(), (LSTM, GRU, MANY), ("forward", "backward")
    ):
        layer, rows, x, *_ = layer_of(cell, 8, torch.float32, D=2, given=(True,) * 4)
        plan = backend._recurrence(layer, rows, x, pass_)._plan
        assert plan.key.family == family


def outcome(family, call, **how):
    """All bits of a call's results, and the barriers that its kernels passed."""
    backend = Simulated(family)
    backend._simulator = Watched(**how)
    found = results(backend, call)
    return [None if each is None else each.numpy().tobytes() for each in found.values()], (
        backend._simulator.sites
    )


SHARED = layer_of(LSTM, 17, torch.float32, (3, 2))
#: Several warps and blocks that share states.
WIDE = layer_of(LSTM, 40, torch.float32, (4, 4, 3))


@pytest.mark.parametrize("family", PERSISTENT)
def test_the_order_of_threads_changes_no_bit(family):
    first, _ = outcome(family, SHARED)
    assert all(outcome(family, SHARED, seed=seed)[0] == first for seed in (1,))


@pytest.mark.full
@pytest.mark.parametrize("family", PERSISTENT)
def test_every_barrier_of_a_block_is_missed_when_it_is_gone(family):
    call = WIDE if family in ("grid", "stream") else SHARED
    right, sites = outcome(family, call)
    assert len(sites) >= 2
    for site in sites:
        found = (outcome(family, call, seed=seed, omit=site)[0] for seed in range(12))
        assert any(each != right for each in found), site


@pytest.mark.parametrize("family", PERSISTENT)
def test_no_kernel_runs_in_less_shared_memory(family, monkeypatch):
    from rnnjit_cuda import plan

    whole = kernels.shared_bytes
    monkeypatch.setattr(plan, "shared_bytes", lambda *sizes: whole(*sizes) - 16)
    with pytest.raises((IndexError, ValueError)):
        outcome(family, layer_of(LSTM, 18, torch.float32, (3, 2)))


def test_the_simulated_device_is_small_enough_for_several_slabs(backends):
    layer, rows, x, *_ = LARGE["lstm-33"]
    plan = backends["grid"]._recurrence(layer, rows, x, "forward")._plan
    assert 1 < plan.grid[0] * plan.grid[1] * plan.grid[2] <= SMALL.multiprocessors
