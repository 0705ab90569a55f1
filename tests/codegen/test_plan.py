"""Protects the plans by which threads share a call of a CPU backend."""

import pytest

from rnnjit import LayerSpec, Rows
from rnnjit.codegen.plan import plan, rows_in_place
from rnnjit.ir import GRU, LSTM, RNN_TANH


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("B", [0, 1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize("H", [1, 20, 64, 500])
def test_plans_cover_the_batch_with_the_threads_there_are(threads, D, B, H):
    layer, vectors = LayerSpec(RNN_TANH, 24, H, D, True), -(-H // 16)
    for N in (50 * B, 30 * B):
        cut = plan(layer, Rows(50, B, N), threads, vectors)
        assert 1 <= cut.threads <= max(threads, D)
        assert cut.parts == 1 or (cut.slices == 1 and D * cut.parts <= cut.threads)
        assert 1 <= cut.parts <= vectors
        if cut.stride == 1:
            assert (cut.slices - 1) * cut.slice_rows < max(B, 1) <= cut.slices * cut.slice_rows
        else:
            assert cut.stride == cut.slices <= B


@pytest.mark.parametrize("cell", [RNN_TANH, LSTM, GRU], ids=lambda cell: cell.name)
@pytest.mark.parametrize("vector_bytes", [32, 64])
@pytest.mark.parametrize("B", [1, 6, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("T", [1, 2])
def test_weights_are_read_in_place_for_few_rows_where_kernels_can(cell, B, T, vector_bytes):
    layer, rows = LayerSpec(cell, 24, 64, 1, True), Rows(T, B, T * B)
    for threads in (1, 8):
        few = {(32, 1): 8, (32, 8): 16, (64, 1): 6, (64, 8): 6}[vector_bytes, threads]
        most = rows_in_place(vector_bytes, threads)
        assert plan(layer, rows, threads, 4, in_place=most).direct == (T == 1 and few >= B)
        assert plan(layer, rows, threads, 4, 0, in_place=most).direct  # few rows of a backward pass
        assert not plan(layer, rows, threads, 4).direct
        assert not plan(layer, rows, threads, 4, 0).direct


@pytest.mark.parametrize(
    ("threads", "B", "H", "parts"),
    [
        (2, 1, 96, 1),
        (2, 1, 128, 2),
        (2, 3, 256, 2),
        (2, 16, 256, 1),
        (4, 1, 512, 4),
        (8, 12, 128, 1),
        (16, 16, 128, 1),
        (32, 32, 128, 1),
        (32, 1, 64, 1),
        (96, 64, 512, 1),
    ],
)
def test_columns_are_divided_where_that_saves_more_than_synchronising_takes(
    threads, B, H, parts, always_teams
):
    cut = plan(LayerSpec(RNN_TANH, 64, H, 1, True), Rows(100, B, 100 * B), threads, -(-H // 16))
    assert cut.parts == parts
    assert cut.threads == threads


@pytest.mark.parametrize("H", [256, 512, 1024])
def test_no_more_threads_than_pay_divide_columns(H):
    layer = LayerSpec(RNN_TANH, 64, H, 1, True)
    few, many = (plan(layer, Rows(100, 1, 100), threads, -(-H // 16)).parts for threads in (32, 96))
    assert few == many < H // 16
