"""Protects `Cell`: its weights, what its constructor refuses, and a cell used alone."""

import math

import pytest
import torch
from torch import nn

from rnnjit.cells import Cell


class Elman(Cell):
    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h))


def test_a_cell_alone_is_torchs_cell_with_its_weights():
    ours, theirs = Elman(3, 5), nn.RNNCell(3, 5)
    ours.load_state_dict(theirs.state_dict())
    x, h = torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(ours(x, h), theirs(x, h))


def test_weights_are_drawn_as_torch_draws_them():
    cell = Cell(30, 64, gates=4, states=("h", "c"), dtype=torch.float64)
    shapes = {name: tuple(each.shape) for name, each in cell.named_parameters()}
    assert shapes == {
        "weight_ih": (256, 30),
        "weight_hh": (256, 64),
        "bias_ih": (256,),
        "bias_hh": (256,),
    }
    for each in cell.parameters():
        assert each.dtype is torch.float64
        assert 0.9 / math.sqrt(64) < each.abs().max() <= 1 / math.sqrt(64)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"bias": False}, ["weight_ih", "weight_hh"]),
        ({"recurrent": False}, ["weight_ih", "bias_ih"]),
        ({"recurrent": False, "bias": False}, ["weight_ih"]),
    ],
)
def test_what_a_cell_does_without_is_none(given, names):
    cell = Elman(3, 5, **given)
    assert [name for name, _ in cell.named_parameters()] == names
    if "recurrent" in given:
        with pytest.raises(TypeError, match="Elman has no hh: construct it with recurrent=True"):
            cell.hh(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"input_size": 0}, ValueError, "input_size: expected at least 1, got 0"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size: expected an integer, got 2.0"),
        ({"gates": True}, TypeError, "gates: expected an integer, got True"),
        ({"gates": -1}, ValueError, "gates: expected at least 1, got -1"),
        ({"states": "h"}, TypeError, "states: expected a tuple of names, got the string 'h'"),
        ({"states": ()}, ValueError, "states: expected at least one name"),
        ({"states": ("h", "h")}, ValueError, "states: expected at least one name, all different"),
        ({"states": ("h 1",)}, ValueError, "states: expected names .* got 'h 1'"),
        ({"states": (1,)}, ValueError, "states: expected names .* got 1"),
    ],
)
def test_the_constructor_names_what_is_wrong(given, error, words):
    with pytest.raises(error, match=words):
        Cell(**{"input_size": 3, "hidden_size": 5, **given})


def test_a_cell_without_a_step_says_so():
    with pytest.raises(NotImplementedError, match=r"Cell defines no forward\(x, h, c\)"):
        Cell(3, 5, states=("h", "c"))(torch.zeros(2, 3))
