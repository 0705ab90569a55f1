"""Protects which outputs need not be kept: those that one exact operation makes of a state."""

import pytest

from rnnjit.ir import GRU, LSTM, RNN_RELU, CellSpec, Program, normal_form
from rnnjit.ir.builder import clamp, relu, tanh
from rnnjit.ir.rebuilt_output import rebuilt_output


def rate_cell(phi, **given):
    def step(zx, zh, v):
        v = 0.5 * v + zx[0] + zh[0]
        return phi(v), v

    cell = CellSpec.trace(step, name="rate", gates=["z"], states=["v"], operand=phi, **given)
    return normal_form(cell).cell


def test_a_rate_follows_from_its_voltage():
    cell = rate_cell(relu)
    assert cell.states == ("operand_", "v")
    assert rebuilt_output(cell) == (1, Program.parse("(v) %1 = relu(%0); return %1"))


def test_constants_of_the_operation_are_kept():
    found = rebuilt_output(rate_cell(lambda v: clamp(v, -1.0, 2.0)))
    assert found == (1, Program.parse("(v) %1 = clamp(%0, -1.0, 2.0); return %1"))


@pytest.mark.parametrize("phi", [tanh, lambda v: relu(v) + 1.0, lambda v: relu(2.0 * v)])
def test_what_would_be_rounded_again_or_takes_more_than_one_operation_is_kept(phi):
    assert rebuilt_output(rate_cell(phi)) is None


@pytest.mark.parametrize("cell", [RNN_RELU, LSTM, GRU], ids=lambda cell: cell.name)
def test_outputs_that_are_no_function_of_a_state_are_kept(cell):
    assert rebuilt_output(cell) is None


def test_an_output_of_the_state_before_the_step_is_kept():
    def step(zx, zh, h, v):
        return relu(v), relu(v), v + zx[0] + zh[0]

    cell = CellSpec.trace(step, name="late", gates=["z"], states=["h", "v"])
    assert rebuilt_output(cell) is None
