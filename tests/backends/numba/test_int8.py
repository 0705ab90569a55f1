"""Protects layers of int8 matrices on the CPU: exact integers, the same bits in any plan."""

import instruction_sets
import pytest
import torch
from covered import in_full
from int8_layers import CELLS, PROJECTED, SIZES, check, check_sizes, drawn, inputs
from own_cells import WIDER_CELLS
from processes import assert_well, program

from rnnjit import RNNSpec, Rows
from rnnjit.reference import layer_forward
from rnnjit.spec import Problem
from rnnjit_numba import BACKEND, int8_plan, run, streaming


@pytest.mark.parametrize("name", CELLS)
def test_every_step_is_what_the_integers_say(name):
    for sizes in SIZES:
        check_sizes(name, sizes)
    check_sizes(name, SIZES[1], bias=False)


@pytest.mark.parametrize("sizes", PROJECTED)
def test_projections(sizes):
    check_sizes("lstm", sizes)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_packed_batches(name):
    layer, weights = drawn(CELLS[name], 66, 35, 2, 0)
    check(layer, weights, *inputs(layer, [5, 5, 3, 1]), [5, 5, 3, 1])


def test_rows_of_zeros_and_of_what_has_no_scale():
    layer, weights = drawn(CELLS["relu"], 70, 20, 1, 0)
    x, (h,) = inputs(layer, [8])
    x[0], h[0, 0] = 0.0, 0.0
    x[1, 69], x[2, 3], h[0, 3, 19] = torch.nan, torch.inf, -torch.inf
    x[4] = 1e-40  # 127 / m overflows
    x[5] *= 1e-30
    x[6] *= 1e30
    x[7, 1], h[0, 7] = 1e38, 1e-45
    check(layer, weights, x, (h,), [8])
    y = run.forward(layer, Rows(1, 8, 8), x, (h,), weights, False).y
    # relu keeps NaN
    assert y[1:4].isnan().all()
    assert torch.equal(y[0], (weights[2] + weights[3]).relu())


def test_the_longest_sums():
    K = int8_plan.LONGEST
    layer, weights = drawn(CELLS["relu"], K, 1, 1, 0)
    weights[0][0] = 127
    weights[0][-1] = 127
    weights[-2][:] = 127 * K
    check(layer, weights, torch.full((1, K), 3.0), (torch.ones(1, 1, 1),), [1])


def test_the_same_bits_in_any_plan(monkeypatch):
    forms = [((130, 150, 1), [3] * 5), ((40, 65, 2), [18] * 3), ((64, 40, 1), [9, 9, 4, 1, 1])]
    for name in ("lstm", "gru"):
        for form, sizes in forms:
            layer, weights = drawn(CELLS[name], *form, 0)
            x, hx = inputs(layer, sizes)
            table = torch.tensor(sizes) if len(set(sizes)) > 1 else None
            rows = Rows(len(sizes), sizes[0], len(x), table)
            results = []
            for large, sync, worth, threads in (
                (1 << 19, 64_000, False, 1),
                (0, 0, True, 2),
                (1 << 40, 1 << 40, True, 2),
                (0, 0, True, 4),
            ):
                monkeypatch.setattr(int8_plan, "_LARGE", large)
                monkeypatch.setattr(int8_plan, "_SYNC_WORK", sync)
                monkeypatch.setattr(int8_plan, "worth_team", lambda saved, worth=worth: worth)
                monkeypatch.setattr(run, "most_threads", lambda asked, threads=threads: threads)
                run._forward_call.cache_clear()
                out = run.forward(layer, rows, x, hx, weights, False)
                results.append(torch.cat([out.y.flatten(), *[h.flatten() for h in out.h_n]]))
            run._forward_call.cache_clear()
            assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.full
@pytest.mark.parametrize("cell", WIDER_CELLS, ids=lambda cell: cell.name)
def test_other_cells(cell):
    if BACKEND.why_not_cell(cell):
        pytest.skip("the kernels do not compute this cell in any dtype")
    layer, weights = drawn(cell, 40, 21, 2, 0)
    source = torch.Generator().manual_seed(3)
    x = torch.randn(9, layer.features, generator=source)
    hx = [torch.randn(2, 9, size, generator=source) for size in layer.state_sizes]
    rows = Rows(1, 9, 9)
    found = run.forward(layer, rows, x, tuple(hx), weights, False)
    # The integers are those of float32 rows; the reference computes all else as its tensors are.
    exact = layer_forward(layer, rows, x.double(), tuple(h.double() for h in hx), weights)
    for ours, theirs in zip((found.y, *found.h_n), (exact[0], *exact[1]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "P"), [("tanh", 0), ("gru", 0), ("lstm", 5)])
def test_a_stream_and_slices_of_a_batch_have_the_same_bits(name, P):
    layer, weights = drawn(CELLS[name], 70, 37, 1, P)
    x, hx = inputs(layer, [3] * 4)
    whole = run.forward(layer, Rows(4, 3, 12), x, hx, weights, False)
    step, states = streaming.stepper(torch.float32, [layer], 3), hx
    for t, y in enumerate(whole.y.split(3)):
        after = tuple(map(torch.empty_like, states))
        found = torch.empty(3, layer.output_size)
        step(x[3 * t : 3 * t + 3], states, after, found, tuple(weights))
        assert torch.equal(found, y)
        states = after
    assert all(map(torch.equal, states, whole.h_n))
    alone = tuple(state[:, 1:2].contiguous() for state in hx)
    one = run.forward(layer, Rows(4, 1, 4), x[1::3].contiguous(), alone, weights, False)
    assert torch.equal(one.y, whole.y[1::3])


def test_threads_that_share_the_step_of_a_stream_leave_its_matrices_alone(monkeypatch):
    monkeypatch.setattr(int8_plan, "_SYNC_WORK", 0)
    monkeypatch.setattr(int8_plan, "worth_team", lambda saved: True)
    monkeypatch.setattr(streaming, "most_threads", lambda asked: 2)
    layer, weights = drawn(CELLS["gru"], 64, 40, 1, 0)
    x, hx = inputs(layer, [1])
    whole = run.forward(layer, Rows(1, 1, 1), x, hx, weights, False)
    assert streaming._layer(torch.float32, [layer], 0, 1, 2).zeros
    step = streaming.stepper(torch.float32, [layer], 1)
    after, y = torch.empty(1, 1, 40), torch.empty(1, 40)
    for _ in range(2):
        step(x, hx, (after,), y, tuple(weights))
        assert torch.equal(y, whole.y)


#: The host's own, and the next narrower one.
NEAREST = instruction_sets.possible()[:2]


@pytest.mark.parametrize("name", [*NEAREST, *in_full(instruction_sets.possible()[2:])])
def test_every_instruction_set_on_guarded_memory(name):
    assert_well(program("import int8_layers; int8_layers.main()", RNNJIT_ISA=name))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["dot", "halves"])
def test_the_code_of_other_processors(kind, tmp_path):
    source = f"import int8_emulated; int8_emulated.main({kind!r})"
    assert_well(program(source, RNNJIT_CACHE_DIR=str(tmp_path)))


def test_rows_that_may_overflow_are_declined():
    longest = int8_plan.LONGEST
    problem = Problem(torch.float32, "cpu", 1, 1, 1, False, False)
    spec = RNNSpec(longest + 1, 3, num_layers=2, cell=CELLS["lstm"], quantized=True)
    (reason,) = BACKEND.why_not(spec, problem)
    assert f"w_ih of layer 0 have {longest + 1}" in reason
    assert not BACKEND.why_not(RNNSpec(longest, 3, quantized=True), problem)
