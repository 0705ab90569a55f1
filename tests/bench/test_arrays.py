"""Protects the arrays of a benchmark case, and the files that hold them."""

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from rnnjit.bench import arrays
from rnnjit.bench.arrays import FRAMES
from rnnjit.bench.records import Case

PACKED = Case(T=9, B=6, I=3, H=4, layers=2, bidirectional=True, packed=True, dtype="float64")


def everything(found):
    return [found.x, *found.hx, found.grad_y, *found.grad_hn, *found.weights.values()]


def test_the_same_case_has_the_same_numbers_and_another_has_others():
    case = Case(T=5, B=2, I=3, H=4)
    first, again = arrays.draw(case), arrays.draw(case)
    other = arrays.draw(Case(T=5, B=2, I=3, H=4, threads=2))
    for a, b, c in zip(*map(everything, (first, again, other)), strict=True):
        assert a.dtype == np.float32
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    assert first.lengths is None


def test_fields_that_reports_lacked_before_do_not_change_their_numbers():
    # Drawn by a version whose cases were all of nn.RNN: its reports hold times of these lengths.
    case = Case(T=100, B=6, I=3, H=4, packed=True)
    old = [100, 62, 51, 37, 20, 12]
    assert arrays.lengths_of(case).tolist() == old
    assert all(arrays.lengths_of(replace(case, cell=c)).tolist() != old for c in ("lstm", "gru"))


def test_the_second_state_has_arrays_of_its_own():
    case = Case(T=2, B=3, I=4, H=5, cell="lstm", layers=2, proj_size=2, mode="training")
    found = arrays.draw(case)
    assert [state.shape for state in found.hx] == [(2, 3, 2), (2, 3, 5)]
    assert [grad.shape for grad in found.grad_hn] == [(2, 3, 2), (2, 3, 5)]
    assert found.grad_y.shape == (2, 3, 2)
    last = arrays.draw(replace(case, mode="last state"))
    assert last.grad_h_n.all()
    assert not last.grad_c_n.any()


MODULES = [
    (Case(T=1, B=1, I=3, H=4, layers=2), nn.RNN(3, 4, 2)),
    (
        Case(T=1, B=1, I=3, H=4, cell="lstm", layers=2, bidirectional=True, proj_size=2),
        nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    ),
    (Case(T=1, B=1, I=3, H=4, cell="gru"), nn.GRU(3, 4)),
]


@pytest.mark.parametrize(("case", "module"), MODULES, ids=lambda v: getattr(v, "cell", ""))
def test_weights_have_the_names_and_shapes_of_the_module(case, module):
    expected = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    weights = arrays.draw(case).weights
    assert {name: weight.shape for name, weight in weights.items()} == expected
    assert all(np.abs(weight).max() <= 0.5 for weight in weights.values())


def test_packed_sequences_get_shorter_and_end_in_zeros():
    found = arrays.draw(PACKED)
    lengths = found.lengths.tolist()
    assert lengths[0] == PACKED.T
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 1
    assert len(set(lengths)) > 1
    for b, length in enumerate(lengths):
        for array in (found.x, found.grad_y):
            assert not array[length:, b].any()
            assert array[:length, b].all()


def test_a_stream_has_several_frames():
    found = arrays.draw(Case(T=1, B=2, I=3, H=4, mode="streaming"))
    assert found.x.shape == (FRAMES, 2, 3)
    assert found.grad_y.shape == (FRAMES, 2, 4)


@pytest.mark.parametrize(
    "case", [PACKED, Case(T=2, B=1, I=3, H=4), Case(T=2, B=1, I=3, H=4, cell="lstm")]
)
def test_a_file_gives_back_what_was_saved(tmp_path, case):
    saved = arrays.draw(case)
    arrays.save(tmp_path / "file", saved)
    found = arrays.load(tmp_path / "file")
    for a, b in zip(everything(found), everything(saved), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert list(found.weights) == list(saved.weights)
    assert np.array_equal(found.lengths, saved.lengths) or found.lengths is saved.lengths


def test_objects_are_not_read(tmp_path):
    arrays.save_results(tmp_path / "file", {"y": np.array([torch], dtype=object)[:0]})
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        arrays.load_results(tmp_path / "file")
