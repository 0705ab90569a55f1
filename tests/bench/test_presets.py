"""Protects the presets: what they measure, and how long that is meant to take."""

import msgspec
import pytest

from rnnjit.bench.cases import EMPTY_CACHE, FILLED_CACHE
from rnnjit.bench.contestants import of_int8
from rnnjit.bench.contestants.eager import Eager
from rnnjit.bench.contestants.jax_scan import JaxScan
from rnnjit.bench.contestants.unrolled import Unrolled
from rnnjit.bench.plan import Plan
from rnnjit.bench.presets import GRID, PRESETS, shortened
from rnnjit.bench.records import Case


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("cpus", [1, 2, 6])
def test_cases_are_distinct_and_make_sense(name, cpus):
    preset = PRESETS[name]
    threads = preset.threads(cpus)
    assert max(threads) == cpus
    cases = preset.cases(threads)
    assert len(set(cases)) == len(cases)
    assert {case.threads for case in cases} <= set(threads)
    for case in cases:
        assert msgspec.json.decode(msgspec.json.encode(case), type=Case) == case
        assert (case.T == 1 and not case.packed) or case.mode != "streaming"
        assert (case.T == case.layers == 1) or not case.as_cell
        baseline = of_int8([case])[0] if case.dtype == "int8" else Eager()
        assert not baseline.declines(case)


def shapes(cases):
    return {(case.T, case.B, case.I, case.H) for case in cases}


def test_quick_is_a_few_shapes_forward_and_training_and_one_stream():
    cases = PRESETS["quick"].cases((2,))
    by_mode = {mode: [c for c in cases if c.mode == mode] for mode in {c.mode for c in cases}}
    assert {mode: len(found) for mode, found in by_mode.items()} == {
        "forward": 5,
        "training": 5,
        "streaming": 1,
    }
    assert shapes(by_mode["forward"]) == shapes(by_mode["training"])


def test_full_is_the_grid_on_one_and_all_threads_and_one_of_everything():
    cases = PRESETS["full"].cases((1, 2))
    for threads in (1, 2):
        for mode in ("forward", "training"):
            found = [c for c in cases if (c.mode, c.threads, c.group) == (mode, threads, "grid")]
            assert shapes(found) == set(GRID)
    assert len(GRID) == 11
    groups = {case.group for case in cases}
    assert {"float64", "relu", "layers", "bidirectional", "packed"} <= groups
    assert {EMPTY_CACHE, FILLED_CACHE} <= groups
    assert {case.mode for case in cases} == {"forward", "training", "streaming", "cold start"}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_cells_are_the_grid_and_one_of_everything_else(cell):
    cases = [case for case in PRESETS["cells"].cases((2,)) if case.cell == cell]
    for mode in ("forward", "training"):
        assert shapes(c for c in cases if (c.mode, c.group) == (mode, "grid")) == set(GRID)
    groups = {case.group for case in cases} - {"grid"}
    expected = {"bidirectional", "2 layers", "3 layers", "float64", "packed", "cell", "frame"}
    assert groups == expected | ({"proj_size"} if cell == "lstm" else set())
    frames = [case for case in cases if case.mode == "streaming"]
    assert shapes(frames) == shapes(case for case in cases if case.as_cell)


def test_a_preset_is_measured_of_the_cells_that_are_named():
    plain, full = PRESETS["full"].cases((2,)), PRESETS["full"].cases((2,), ("rnn", "gru"))
    assert {case.cell for case in plain} == {"rnn"}
    assert [case for case in full if case.cell == "rnn"] == list(plain)
    relu = [case for case in plain if case.nonlinearity == "relu"]
    others = [msgspec.structs.replace(c, cell="gru") for c in plain if c not in relu]
    assert [case for case in full if case.cell == "gru"] == others
    assert relu
    assert {case.cell for case in PRESETS["cells"].cases((2,))} == {"lstm", "gru"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_quick_run_has_a_case_of_every_group_and_is_short(name):
    whole = PRESETS[name].cases((2,), PRESETS[name].cells)
    cases = shortened(whole)
    groups = {(case.cell, case.group) for case in whole if not case.cold}
    assert {(case.cell, case.group) for case in cases} == groups - {("rnn", "grid")} | {
        (case.cell, case.group) for case in cases if case.group == "grid"
    }
    assert 0 < len(cases) <= 24
    assert all(case.T * case.B * case.H <= 1_000_000 for case in cases)


@pytest.mark.parametrize("group", ["T", "B", "H", "threads"])
def test_a_sweep_changes_one_size(group):
    cases = PRESETS["scaling"].cases((1, 2, 4))
    found = [c for c in cases if c.group == group and c.mode == "forward"]
    values = [getattr(case, group) for case in found]
    assert len(found) >= 3
    assert values == sorted(set(values))
    changing = {"H": ("I", "H")}.get(group, (group,))  # input features go with hidden ones
    rest = {
        tuple(getattr(c, f) for f in Case.__struct_fields__ if f not in changing) for c in found
    }
    assert len(rest) == 1


def test_streaming_packed_and_training_are_what_they_are_called():
    assert {c.mode for c in PRESETS["streaming"].cases((2,))} == {"streaming"}
    assert {c.mode for c in PRESETS["training"].cases((2,))} == {"training", "last state"}
    assert all(c.packed for c in PRESETS["packed"].cases((2,)))


def test_quantized_is_int8_of_single_rows_and_small_batches():
    cases = PRESETS["quantized"].cases((2,))
    assert {case.dtype for case in cases} == {"int8"}
    assert {case.cell for case in cases} == {"lstm", "gru"}
    assert shapes(cases) == {
        (T, B, H, H) for T in (1, 20) for B in (1, 16) for H in (128, 256, 512, 1024)
    }
    assert not any(case.trains for case in cases)


def test_threads_that_are_asked_for_are_those_that_are_measured():
    assert {c.threads for c in PRESETS["quick"].cases((1, 3))} == {1, 3}
    assert PRESETS["scaling"].threads(6) == (1, 2, 4, 6)


def test_what_is_expected_grows_with_the_work():
    plan, cases = Plan(), PRESETS["quick"].cases((2,))
    one = plan.seconds(cases, [Eager()])
    assert plan.seconds(cases, [Eager(), JaxScan()]) > one
    assert plan.seconds(cases, [Eager(), Unrolled()]) > one
    assert plan.seconds(PRESETS["full"].cases((1, 2)), [Eager()]) > one
