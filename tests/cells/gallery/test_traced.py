"""Protects what the gallery's cells compile to: one step of each, with no more than it needs."""

import pytest
import torch
from gallery_cells import AGAIN, GALLERY
from torch import nn

from rnnjit.cells import trace_cell
from rnnjit.ir import GRU, LSTM, RNN_TANH, normal_form

#: Of each cell: gates, states of its normal form, parameters, row inputs, draws of a step.
FACTS = {
    "leaky": (1, 2, 2, 0, 0),
    "leaky-noise": (1, 2, 2, 1, 1),
    "leaky-softplus-no-bias": (1, 2, 2, 0, 0),
    "low-rank": (1, 2, 2, 0, 0),
    "dale": (1, 2, 2, 0, 0),
    "antisymmetric": (1, 1, 0, 0, 0),
    "ugrnn": (2, 1, 0, 0, 0),
    "janet": (2, 1, 0, 0, 0),
    "mgu": (2, 1, 0, 0, 0),
    "mgu-no-bias": (2, 1, 0, 0, 0),
    "peephole": (4, 2, 3, 0, 0),
    "indrnn": (1, 1, 1, 0, 0),
    "lif-fast_sigmoid": (1, 3, 0, 0, 0),
    "lif-arctan": (1, 3, 0, 0, 0),
    "lif-triangle": (1, 3, 0, 0, 0),
    "rnn-again": (1, 1, 0, 0, 0),
    "lstm-again": (4, 2, 0, 0, 0),
    "gru-again": (3, 1, 0, 0, 0),
}


@pytest.mark.parametrize("name", GALLERY)
def test_a_step_is_one_product_and_a_program(name):
    traced = trace_cell(GALLERY[name].new(3, 5))
    spec = normal_form(traced.spec).cell
    found = len(spec.gates), len(spec.states), len(spec.parameters), len(spec.row_inputs)
    assert (*found, len(traced.draws)) == FACTS[name]
    assert traced.input_size == 3
    assert traced.bias == (not name.endswith("no-bias"))
    assert spec.has_product == (name != "indrnn")


def test_noise_is_a_row_input_in_training_alone():
    cell = GALLERY["leaky-noise"].new(3, 5)
    assert len(trace_cell(cell.train()).draws) == 1
    assert trace_cell(cell.eval()).draws == ()


@pytest.mark.parametrize(
    ("layer", "spec"), [(nn.RNN, RNN_TANH), (nn.LSTM, LSTM), (nn.GRU, GRU)], ids=str
)
def test_a_layer_of_torch_written_again_is_the_built_in_cell(layer, spec):
    cell = AGAIN[layer](3, 5)
    traced = trace_cell(cell)
    assert traced.spec == spec
    w_ih, w_hh, b_ih, b_hh = traced.weights(cell)
    assert w_ih is cell.weight_ih
    assert w_hh is cell.weight_hh
    assert b_ih is cell.bias_ih
    assert b_hh is cell.bias_hh


def test_one_cell_of_other_numbers_is_another_cell():
    one, other = (GALLERY["janet"].cls(3, 5, beta=beta) for beta in (1.0, 2.0))
    assert trace_cell(one).spec != trace_cell(other).spec
    assert trace_cell(one).spec == trace_cell(GALLERY["janet"].cls(7, 5)).spec


def test_the_sizes_of_a_cell_are_no_part_of_it():
    with torch.device("cpu"):
        one, other = (GALLERY["peephole"].cls(I, H) for I, H in ((3, 5), (8, 2)))
    assert trace_cell(one).spec == trace_cell(other).spec
