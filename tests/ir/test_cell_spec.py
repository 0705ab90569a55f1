"""Protects a cell's identity (text, digest, equality), and the properties found in its program."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec, Program
from rnnjit.ir.builder import exp, relu, sigmoid, tanh
from rnnjit.ir.torch_evaluator import evaluate_tensors

BUILT_IN = [RNN_TANH, RNN_RELU, LSTM, GRU]
built_in = pytest.mark.parametrize("cell", BUILT_IN, ids=lambda cell: cell.name)


def leaky(zx, zh, h, s, decay):
    v = decay * s + (zx[0] + zh[0])
    return relu(v), tanh(v), v


def leaky_cell(**more):
    given = {"name": "leaky", "gates": ["in"], "states": ["h", "s"], "parameters": ["decay"]}
    return CellSpec.trace(leaky, **given | more)


@built_in
def test_built_in_cells_parse_back_to_themselves(cell):
    assert CellSpec.parse(cell.text) is cell


@built_in
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_are_equal(cell, copied):
    cell.backward  # noqa: B018 - so that there is something cached
    other = copied(cell)
    assert other == cell
    assert hash(other) == hash(cell)
    assert (other.name, other.gates) == (cell.name, cell.gates)


def test_other_cells_parse_back_without_names():
    cell = leaky_cell(operand=lambda h, s, decay: exp(h))
    parsed = CellSpec.parse(cell.text)
    assert parsed == cell
    assert parsed.digest == cell.digest
    assert parsed.text == cell.text
    assert (parsed.states, parsed.parameters) == (("h", "s"), ("decay",))
    assert parsed.operand == cell.operand


def test_identity_is_what_is_computed():
    cells = [*BUILT_IN, leaky_cell(), leaky_cell(operand=lambda h, s, decay: s)]
    assert len({cell.digest for cell in cells}) == len(set(cells)) == len(cells)
    renamed = leaky_cell(name="other", gates=["z"])
    assert renamed == leaky_cell()
    assert RNN_TANH != "tanh"
    assert all(len(cell.digest) == 64 and int(cell.digest, 16) for cell in cells)


def test_accumulators():
    names = {cell.name: [each.name for each in cell.accumulators] for cell in BUILT_IN}
    assert names == {
        "tanh": ["z_0"],
        "relu": ["z_0"],
        "lstm": ["z_0", "z_1", "z_2", "z_3"],
        "gru": ["z_0", "z_1", "zx_2", "zh_2"],
    }
    parts = [(each.gate, each.has_input, each.has_hidden) for each in GRU.accumulators]
    assert parts == [(0, True, True), (1, True, True), (2, True, False), (2, False, True)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda zx, zh, h: [tanh(zh[0] + zx[0])] * 2, ["z_0"]),
        (lambda zx, zh, h: [tanh(zx[0] + zh[0]) + zx[0]] * 2, ["zx_0", "zh_0"]),
        (lambda zx, zh, h: [tanh(zx[0] + zh[0]), zh[0]], ["zx_0", "zh_0"]),
        (lambda zx, zh, h: [tanh(zx[0] - zh[0])] * 2, ["zx_0", "zh_0"]),
        (lambda zx, zh, h: [tanh(zx[0] + zx[0])] * 2, ["zx_0"]),
        (lambda zx, zh, h: [tanh(zx[0] + zx[0]) * zh[0]] * 2, ["zx_0", "zh_0"]),
        (lambda zx, zh, h: [tanh(zx[0] + h + zh[0])] * 2, ["zx_0", "zh_0"]),
    ],
)
def test_parts_that_meet_only_in_their_sum_are_one_accumulator(function, expected):
    cell = CellSpec.trace(function, name="cell", gates=["z"], states=["h"])
    assert [each.name for each in cell.accumulators] == expected
    assert cell.step.inputs == (*expected, "h")


def test_parts_of_different_gates_are_not_one_accumulator():
    cell = CellSpec.trace(
        lambda zx, zh, h: [tanh(zx[0] + zh[1]) * sigmoid(zx[1] + zh[0])] * 2,
        name="crossed",
        gates=["a", "b"],
        states=["h"],
    )
    assert [each.name for each in cell.accumulators] == ["zx_0", "zh_0", "zx_1", "zh_1"]


def test_elman():
    assert RNN_TANH.is_elman
    assert RNN_RELU.is_elman
    identity = CellSpec.trace(
        lambda zx, zh, h: [zx[0] + zh[0]] * 2, name="linear", gates=["z"], states=["h"]
    )
    assert identity.is_elman
    functions = {
        "reads h": lambda zx, zh, h: [tanh(zx[0] + zh[0]) + h] * 2,
        "stores z": lambda zx, zh, h: [(zx[0] + zh[0]) * tanh(zx[0] + zh[0])] * 2,
        "other y": lambda zx, zh, h: [tanh(zx[0] + zh[0]), relu(zx[0] + zh[0])],
    }
    for name, function in functions.items():
        assert not CellSpec.trace(function, name=name, gates=["z"], states=["h"]).is_elman
    assert not CellSpec.trace(
        lambda zx, zh, h: [tanh(zx[0] + zh[0])] * 2,
        name="rectified operand",
        gates=["z"],
        states=["h"],
        operand=relu,
    ).is_elman
    assert not any(cell.is_elman for cell in (LSTM, GRU, leaky_cell()))


def test_out_state():
    assert [cell.out_state for cell in BUILT_IN] == [0, 0, 0, 0]
    assert leaky_cell().out_state is None


def test_operations_are_those_of_every_program():
    assert RNN_TANH.operations == {"tanh", "tanh_backward", "add"}
    assert "relu" in leaky_cell(operand=lambda h, s, decay: relu(h)).operations
    assert {"exp", "mul"} <= leaky_cell(operand=lambda h, s, decay: exp(h)).operations


def test_the_derivative_of_the_operand():
    cell = leaky_cell(operand=lambda h, s, decay: exp(h))
    assert cell.operand_backward.text == (
        "(h, s, decay, grad_operand) %4 = exp(%0); %5 = mul(%3, %4); return %5, none, none"
    )
    assert LSTM.operand_backward is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": []}, "at least one gate and one state, got 0 gates and 2 states"),
        ({"states": []}, "at least one gate and one state, got 1 gates and 0 states"),
        ({"parameters": ["out"]}, "got 'out'"),
        ({"parameters": ["saved_3"]}, "got 'saved_3'"),
        ({"states": ["h", "grad_new_h"]}, "got 'grad_new_h'"),
        ({"parameters": ["h"]}, "differ"),
        (
            {"operand": lambda h, s, decay: (h, s)},
            r"1 outputs of the operand, none of them None, got \(0, 1\)",
        ),
    ],
)
def test_errors_say_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        leaky_cell(**change)


def test_a_program_must_fit_its_cell():
    with pytest.raises(ValueError, match="expected a program of zx_0, zh_0, h, got one of x"):
        CellSpec("cell", ("z",), ("h",), (), Program(("x",), (), (0, 0)))
    with pytest.raises(ValueError, match=r"2 outputs of the program, .* got \(0,\)"):
        CellSpec("cell", ("z",), ("h",), (), Program(("zx_0", "zh_0", "h"), (), (0,)))
    with pytest.raises(ValueError, match="none of them None"):
        CellSpec("cell", ("z",), ("h",), (), Program(("zx_0", "zh_0", "h"), (), (0, None)))
    with pytest.raises(ValueError, match="expected a cell's text"):
        CellSpec.parse("cell 2")


def one_step(cell, module, x, *states):
    """A step of one of torch's cells from its weights, by the cell's program."""
    zx = nn.functional.linear(x, module.weight_ih, module.bias_ih).chunk(len(cell.gates), 1)
    zh = nn.functional.linear(states[0], module.weight_hh, module.bias_hh)
    return evaluate_tensors(cell.program, [*zx, *zh.chunk(len(cell.gates), 1), *states])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_steps_are_torchs(nonlinearity):
    torch.manual_seed(0)
    cell = {"tanh": RNN_TANH, "relu": RNN_RELU}[nonlinearity]
    module = nn.RNNCell(3, 5, nonlinearity=nonlinearity, dtype=torch.float64)
    x, h = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    y, new_h = one_step(cell, module, x, h)
    torch.testing.assert_close(y, module(x, h))
    assert y is new_h or torch.equal(y, new_h)


def test_lstm_steps_are_torchs():
    torch.manual_seed(0)
    module = nn.LSTMCell(3, 5, dtype=torch.float64)
    x, h, c = (torch.randn(4, n, dtype=torch.float64) for n in (3, 5, 5))
    y, *states = one_step(LSTM, module, x, h, c)
    torch.testing.assert_close(tuple(states), module(x, (h, c)))
    assert torch.equal(y, states[0])


def test_gru_steps_are_torchs():
    torch.manual_seed(0)
    module = nn.GRUCell(3, 5, dtype=torch.float64)
    x, h = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    y, new_h = one_step(GRU, module, x, h)
    torch.testing.assert_close(new_h, module(x, h))
    assert torch.equal(y, new_h)


def test_the_package_imports_neither_torch_nor_numpy():
    # Without rnnjit/__init__.py, which is not what is measured.
    code = (
        "import sys, types; package = types.ModuleType('rnnjit'); package.__path__ = [sys.argv[1]];"
        "sys.modules['rnnjit'] = package; import rnnjit.ir;"
        "print({'torch', 'numpy'} & set(sys.modules), sorted(m for m in sys.modules if "
        "m.startswith('rnnjit.') and not m.startswith('rnnjit.ir')))"
    )
    folder = sys.modules["rnnjit.ir"].__path__[0].removesuffix("ir")
    printed = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert printed.stdout == "set() []\n"
