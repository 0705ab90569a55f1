"""Protects the register tiles: each computes the same bits, and the choice among them."""

import json
import math
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from teams import forget_plans
from torch import nn

import rnnjit
from rnnjit import LayerSpec, Rows
from rnnjit.codegen import isa_named
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.kernel import Kind
from rnnjit.ir import RNN_TANH
from rnnjit.runtime import object_cache
from rnnjit.tools.environment import environment
from rnnjit_numba import targets, tile_choice, tile_measurement
from rnnjit_numba.tile_choice import best_outer, best_tiling, measured_rates
from rnnjit_numba.tile_shapes import (
    TileShape,
    Tiling,
    as_tiles_see,
    candidates,
    outer_candidates,
    tilings,
)
from rnnjit_numba.tile_table import Rates, start_rates

ISAS = [
    *(isa_named(name, cpu, (), "") for name in ("avx512", "plain") for cpu in ("znver4", "new")),
    *(isa_named(*known, (), "") for known in (("avx2", "haswell"), ("neon", "apple-m1"))),
    *(targets.target(name).isa for name in targets.NAMES),
]
FLOAT32 = Kind(torch.float32, RNN_TANH)
LARGE = LayerSpec(RNN_TANH, 1024, 1024, num_directions=1, bias=True)
TILINGS = tilings(host_isa())


@pytest.fixture
def choose(monkeypatch):
    """Sets RNNJIT_TILES for calls that are planned anew."""

    def to(tiles):
        monkeypatch.setenv("RNNJIT_TILES", tiles)
        forget_plans()

    yield to
    forget_plans()


@pytest.fixture
def rates_of_this_test(monkeypatch, tmp_path):
    """Nothing is measured yet, and what is measured is kept in a folder of the test's own."""
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(measured_rates, "made", {})


def gradients(module, x):
    y, h_n = module(x)
    loss = y.square().sum() + h_n.sin().sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


# Two blocks of k and a rest; 31 rows, so that every tile leaves some; a ragged last vector.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.float64, 1e-4), (torch.bfloat16, 0.05)],
    ids=["f32", "f64", "bf16"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_tile_gives_the_same_bits(dtype, tolerance, threads, choose):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    rnn = nn.RNN(301, 149).to(dtype)
    x = torch.randn(3, 31 * threads, 301, dtype=dtype, requires_grad=True)
    exact = rnn.double(), x.detach().double().requires_grad_()
    expected = [value.to(dtype) for value in gradients(*exact)]
    rnn, first = rnn.to(dtype), None
    isa = as_tiles_see(host_isa(), dtype)
    for tiling, outer in zip(tilings(isa), cycle(outer_candidates(isa)), strict=False):
        choose(f"{tiling},{outer}")
        # Compiled anew, since a module keeps the plans of its calls.
        found = gradients(rnnjit.compile(rnn, backend="numba"), x)
        first = first or found
        for value, same, near in zip(found, first, expected, strict=True):
            assert torch.equal(value, same), (tiling, outer)
            scale = max(1.0, near.abs().max().item())
            torch.testing.assert_close(value, near, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: f"{isa.name}-{isa.cpu}")
def test_tiles_fit_the_registers_and_every_processor_has_a_start(isa, dtype):
    registers, isa = isa.registers, as_tiles_see(isa, dtype)
    # Both halves of a pair are operands; of 32 registers the choice is measured.
    halves = 2 if dtype is torch.bfloat16 and registers == 16 else 1
    for rows, vectors in (*candidates(isa), *outer_candidates(isa)):
        # Accumulators, the operand of which there are fewer elements, and one of the other.
        assert rows * vectors + halves * min(rows, vectors) + 1 <= registers
        assert 8 <= rows * vectors <= 28
    rates = start_rates(isa)
    assert best_tiling(isa, None, 64).shape in candidates(isa)
    assert best_outer(isa, None) in outer_candidates(isa)
    assert all(rate > 0 for rate in rates.tiles.values())


def rates_with(fast, rate):
    """Rates of 50 for every tile but one, and for every tile of sums."""
    isa = host_isa()
    tiles = {**dict.fromkeys(start_rates(isa).tiles, 50.0), fast: rate}
    return Rates(tiles, dict.fromkeys(outer_candidates(isa), 50.0))


@pytest.mark.parametrize("fast", TILINGS, ids=str)
def test_the_fastest_tile_is_chosen(fast):
    isa = host_isa()
    many = 100 * fast.shape.rows
    assert best_tiling(isa, rates_with(fast, 80.0), many) == fast
    # A difference that may be noise does not replace the table's choice.
    assert best_tiling(isa, rates_with(fast, 51.0), many) == best_tiling(isa, None, many)
    # A row is cut in one way, whatever the choice, which is made for the products of all steps.
    assert best_tiling(isa, rates_with(fast, 80.0), 1) == fast
    assert best_tiling(isa, None, 1) == best_tiling(isa, None, many)


def test_the_fastest_tile_of_sums_is_chosen():
    isa, rates = host_isa(), rates_with(TILINGS[0], 50.0)
    for shape in outer_candidates(isa):
        assert best_outer(isa, replace_outer(rates, shape, 60.0)) == shape
        assert best_outer(isa, replace_outer(rates, shape, 51.0)) == best_outer(isa, None)


def replace_outer(rates, shape, rate):
    return rates._replace(outer={**rates.outer, shape: rate})


def test_a_measurement_covers_every_tile():
    rates = tile_measurement.measure(FLOAT32)
    assert {*rates.tiles} == {*start_rates(host_isa()).tiles}
    assert {*rates.outer} == {*outer_candidates(host_isa())}
    assert all(0 < rate < math.inf for rate in (*rates.tiles.values(), *rates.outer.values()))


def test_noise_does_not_make_a_tile_infinitely_fast(monkeypatch):
    # All calls take as long, also the one without a sum.
    monkeypatch.setattr(tile_measurement, "_least", lambda calls, _: dict.fromkeys(calls, 1e-3))
    rates = tile_measurement.measure(FLOAT32)
    assert max(rates.outer.values()) < 10 * min(rates.tiles.values())


@pytest.mark.usefixtures("rates_of_this_test")
def test_a_call_of_much_work_measures_once_and_later_processes_read(monkeypatch):
    measured, fastest = [], TILINGS[-1]

    def measure(kind):
        measured.append(kind)
        return rates_with(fastest, 90.0)

    monkeypatch.setattr(tile_choice, "measure", measure)
    small = replace(LARGE, input_size=8, hidden_size=8)
    assert tile_choice.tiling(FLOAT32, small, Rows(1, 64, 64), 64) == best_tiling(
        host_isa(), None, 64
    )
    assert measured == []
    rows = 100 * fastest.shape.rows
    for _ in range(2):
        assert tile_choice.tiling(FLOAT32, LARGE, Rows(1, rows, rows), rows) == fastest
        assert measured == [FLOAT32]
    measured_rates.made.clear()  # as in another process
    assert tile_choice.tiling(FLOAT32, LARGE, Rows(1, rows, rows), rows) == fastest
    assert measured == [FLOAT32]
    assert "measured: 90 and 50 GFLOP/s" in tile_choice.described(torch.float32)
    assert "not measured" in tile_choice.described(torch.float64)


@pytest.mark.usefixtures("rates_of_this_test")
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", json.dumps({"tiles": {"1x1": 3}}).encode(), None]
)
def test_rates_that_cannot_be_read_are_measured_again(content, monkeypatch):
    monkeypatch.setattr(tile_choice, "measure", lambda kind: rates_with(TILINGS[0], 90.0))
    measured_rates(FLOAT32)
    (key,) = object_cache.keys("tiles")
    if content is None:
        kept = json.loads(object_cache.fetch(key, "tiles"))
        content = json.dumps({**kept, "outer": dict.fromkeys(kept["outer"], 0.0)}).encode()
    object_cache.keep(key, content, "tiles")
    assert tile_choice.known_rates(host_isa(), torch.float32) is None
    measured_rates.made.clear()
    assert measured_rates(FLOAT32) == rates_with(TILINGS[0], 90.0)
    assert tile_choice.known_rates(host_isa(), torch.float32) is not None


def test_the_variable_forces_a_choice(choose):
    forced = (
        Tiling(TileShape(4, 4), 128) if host_isa().registers >= 32 else Tiling(TileShape(6, 2), 128)
    )
    outer = outer_candidates(host_isa())[-1]
    choose(f"{forced},{outer}")
    assert tile_choice.tiling(FLOAT32, LARGE, Rows(1, 1024, 1024), 1024) == forced
    assert tile_choice.outer_tile(FLOAT32, LARGE, Rows(1, 1024, 1024)) == outer
    assert f"{forced}, for sums {outer} (RNNJIT_TILES" in tile_choice.described(torch.float32)


@pytest.mark.parametrize("tiles", ["6", "3x3", "4x4/100", "4x4,1x1", ",8x3"])
def test_a_tile_that_does_not_exist_is_named(tiles, choose):
    choose(tiles)
    with pytest.raises(ValueError, match=rf"RNNJIT_TILES must be TILE or .* got '{tiles}'"):
        tile_choice.tiling(FLOAT32, LARGE, Rows(1, 1024, 1024), 1024)
    numba = next(each for each in environment().backends if each.name == "numba")
    assert tiles in numba.choices["tiles of float32"]
