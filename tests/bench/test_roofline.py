"""Protects the roofline: a call's least work and its bound, by hand, on an invented machine."""

import pytest
from bench_report import MACHINE

from rnnjit.bench.arrays import lengths_of
from rnnjit.bench.machine import cache_sizes, measure_machine
from rnnjit.bench.records import Case
from rnnjit.bench.roofline import bound, limits, overheads, share_of_peak, work


def test_the_work_of_a_layer():
    needed = work(Case(T=10, B=4, I=3, H=5))
    assert needed.flops == 2 * 10 * 4 * 5 * (3 + 5)
    assert needed.weights == 5 * 5 * 4
    assert needed.steps == 10
    assert needed.rows == 10 * 4 * (3 + 5) * 4


def test_the_work_of_a_stack_of_two_directions_with_a_backward_pass():
    case = Case(T=10, B=4, I=3, H=5, layers=2, bidirectional=True, dtype="float64", mode="training")
    needed = work(case)
    assert needed.flops == 3 * (2 * 40 * 2 * 5 * (3 + 5) + 2 * 40 * 2 * 5 * (10 + 5))
    assert needed.weights == 2 * 5 * 5 * 8
    assert needed.steps == 10 * 2 * 2
    assert needed.rows == 3 * 40 * ((3 + 10) + (10 + 10)) * 8


def test_the_work_of_gates_and_of_a_projection():
    gru = work(Case(T=10, B=4, I=3, H=5, cell="gru"))
    assert gru.flops == 2 * 40 * 3 * 5 * (3 + 5)
    assert gru.weights == 3 * 5 * 5 * 4
    lstm = work(Case(T=10, B=4, I=3, H=5, cell="lstm", layers=2, proj_size=2))
    assert lstm.flops == sum(2 * 40 * (4 * 5 * (below + 2) + 5 * 2) for below in (3, 2))
    assert lstm.weights == (4 * 5 * 2 + 2 * 5) * 4
    assert lstm.rows == 40 * ((3 + 2) + (2 + 2)) * 4


def test_int8_matrices_are_read_as_bytes_and_rows_as_float32():
    needed = work(Case(T=10, B=4, I=3, H=5, dtype="int8"))
    assert needed.weights == 5 * 5
    assert needed.rows == 10 * 4 * (3 + 5) * 4


def test_a_backward_pass_alone_has_two_thirds_of_the_operations_of_both():
    case = Case(T=10, B=4, I=3, H=5, mode="backward")
    assert work(case).flops == 2 * 2 * 10 * 4 * 5 * (3 + 5)
    assert work(case).steps == 10


def test_packed_rows_alone_count():
    case = Case(T=100, B=4, I=3, H=5, packed=True)
    rows = lengths_of(case).sum()
    assert 100 < rows < 400
    assert work(case).flops == 2 * rows * 5 * (3 + 5)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # 2*6400*512*1024 / 100e9; W_hh is 1 MiB, x and y 26 MB in memory
        (
            Case(T=100, B=64, I=512, H=512),
            {"compute": 0.06710886, "L2": 100 * 2**20 / 100e9, "memory": 6400 * 1024 * 4 / 10e9},
        ),
        # two threads hold a half of W_hh each
        (
            Case(T=100, B=1, I=64, H=700, threads=2),
            {
                "compute": 2 * 100 * 700 * 764 / 200e9,
                "L2": (100 * 700 * 700 * 4 + 100 * 764 * 4) / 200e9,
            },
        ),
    ],
)
def test_the_limits_of_a_call(case, expected):
    assert limits(case, MACHINE) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("seconds", "overhead", "name"),
    [(0.07, None, "compute"), (0.3, None, "steps"), (0.3, 0.2, "Python"), (0.3, 0.1, "steps")],
)
def test_what_bounds_a_call_that_multiplies(seconds, overhead, name):
    found = bound(Case(T=100, B=64, I=512, H=512), seconds, MACHINE, overhead)
    assert found.name == name
    assert found.share == pytest.approx(0.06710886 / seconds, rel=1e-6)


def test_one_sequence_is_bound_by_the_cache_that_holds_the_weights():
    assert bound(Case(T=100, B=1, I=64, H=500), 1.5e-3, MACHINE).name == "L2"
    assert bound(Case(T=100, B=1, I=64, H=1800), 40e-3, MACHINE).name == "L3"
    assert bound(Case(T=100, B=1, I=64, H=2100), 300e-3, MACHINE).name == "memory"


def test_a_machine_that_was_not_measured_bounds_nothing():
    case = Case(T=1, B=1, I=1, H=1, threads=8)
    assert bound(case, 1.0, MACHINE) is share_of_peak(case, 1.0, MACHINE) is None


def test_the_share_of_the_peak_is_that_of_the_multiply_adds():
    case = Case(T=100, B=64, I=512, H=512)
    assert share_of_peak(case, 0.1, MACHINE) == pytest.approx(0.6710886)


def test_overheads_are_the_least_time_beyond_the_limit():
    small, large = Case(T=1, B=1, I=1, H=1), Case(T=100, B=64, I=512, H=512)
    found = overheads({small: 8e-6, large: 0.08}, MACHINE)
    assert found == {("forward", "float32", 1): pytest.approx(8e-6, rel=1e-2)}


def test_this_machine_is_measured():
    machine = measure_machine([1], quick=True)
    assert machine.cpus >= 1
    assert {(p.dtype, p.threads) for p in machine.peaks} == {("float32", 1), ("float64", 1)}
    assert [b.level for b in machine.bandwidths] == ["L1", "L2", "L3", "memory"]
    # Any processor that runs this does more than a multiply-add a nanosecond, and less than 10,000.
    for peak in machine.peaks:
        assert 1e9 < peak.flops < 1e13
    for level in machine.bandwidths:
        assert 1e8 < level.rate < 1e13


def test_cache_sizes_are_read_from_the_system(tmp_path):
    for index, (kind, level, size) in enumerate(
        [("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 2, "2048K")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("type", kind), ("level", str(level)), ("size", size)):
            (folder / name).write_text(value + "\n")
    assert cache_sizes(tmp_path) == {1: 48 << 10, 2: 2048 << 10}
