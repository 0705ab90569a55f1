"""Protects how a batch is divided: plans are made for few kinds of packed batches."""

from rnnjit.codegen.row_slices import alike
from rnnjit.spec import Rows


def test_packed_rows_are_taken_for_few_more():
    for T, B in ((1, 1), (30, 16), (7, 3), (1000, 64), (2, 40_000)):
        kinds = set()
        for N in range(0, T * B, max(T * B // 4000, 1)):
            found = alike(Rows(T, B, N))
            assert found == Rows(T, B, found.N)
            assert N <= found.N <= N + N / 8
            assert found.N < T * B
            kinds.add(found)
        assert len(kinds) <= 8 * (T * B).bit_length()


def test_dense_rows_are_themselves():
    for rows in (Rows(30, 16, 480), Rows(1, 1, 1), Rows(3, 0, 0)):
        assert alike(rows) is rows
