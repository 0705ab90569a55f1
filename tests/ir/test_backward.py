"""Protects steps and their backward programs, against autograd, and their saved values."""

import random

import numpy as np
import pytest
import torch

from rnnjit.ir import GRU, LSTM, OPERATIONS, RNN_RELU, RNN_TANH, CellSpec, Program
from rnnjit.ir import builder as b
from rnnjit.ir.builder import clamp, detach, exp, maximum, relu, sigmoid, silu, tanh, where
from rnnjit.ir.numpy_evaluator import evaluate_arrays
from rnnjit.ir.torch_evaluator import evaluate_tensors

H = 64


def ugrnn(zx, zh, h):
    """Collins, Sohl-Dickstein & Sussillo, Capacity and Trainability in RNNs, 2017."""
    g, c = sigmoid(zx[0] + zh[0]), tanh(zx[1] + zh[1])
    h = g * h + (1 - g) * c
    return h, h


def mgu(zx, zh, h):
    """Zhou et al., Minimal Gated Unit, 2016, with the gate applied after the product."""
    f = sigmoid(zx[0] + zh[0])
    n = tanh(zx[1] + f * zh[1])
    h = (1 - f) * h + f * n
    return h, h


def spiking(zx, zh, h, v, decay, threshold):
    """A leaky integrate-and-fire unit whose spikes have a surrogate gradient."""
    v = decay * v * (1 - detach(h)) + (zx[0] + zh[0])
    soft = sigmoid(4 * (v - threshold))
    spike = soft + detach(where(v > threshold, 1.0, 0.0) - soft)
    return spike, spike, v


def stores_sums(zx, zh, h):
    """More values than accumulators are needed: exp, silu's argument, two products."""
    z = zx[0] + zh[0]
    h = tanh(exp(silu(z)) * tanh(z) * relu(z + h)) + clamp(z, -0.5, 0.5)
    return maximum(h, z), h


def make(function, gates, states=("h",), parameters=()):
    return CellSpec.trace(
        function, name=function.__name__, gates=gates, states=states, parameters=parameters
    )


UGRNN, MGU = make(ugrnn, ["g", "c"]), make(mgu, ["f", "n"])
SPIKING = make(spiking, ["z"], ["h", "v"], ["decay", "threshold"])
STORES_SUMS = make(stores_sums, ["z"])
CELLS = [RNN_TANH, RNN_RELU, LSTM, GRU, UGRNN, MGU, SPIKING, STORES_SUMS]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


def random_inputs(program):
    torch.manual_seed(0)
    return [torch.randn(3, H, dtype=torch.float64, requires_grad=True) for _ in program.inputs]


def accumulated(cell, inputs):
    named = dict(zip(cell.program.inputs, inputs, strict=True))
    found = []
    for each in cell.accumulators:
        zx, zh = named[f"zx_{each.gate}"], named[f"zh_{each.gate}"]
        found.append({"sum": zx + zh, "input": zx, "hidden": zh}[each.part])
    return [*found, *inputs[2 * len(cell.gates) :]]


def by_autograd(cell, inputs, gradients):
    """Gradients of accumulators, states and parameters, by differentiating the program."""
    outputs = evaluate_tensors(cell.program, inputs)
    # A sum: what an output's gradient is where it is several outputs.
    loss = sum((o * g).sum() for o, g in zip(outputs, gradients, strict=True))
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    named = dict(zip(cell.program.inputs, found, strict=True))
    for each in cell.accumulators:
        part = "zh" if each.part == "hidden" else "zx"
        if each.part == "sum":
            torch.testing.assert_close(named[f"zx_{each.gate}"], named[f"zh_{each.gate}"])
        yield named[f"{part}_{each.gate}"]
    yield from found[2 * len(cell.gates) :]


def by_program(cell, inputs, gradients, evaluate, backward=None):
    """The same as a backend computes it: a step that stores, then the backward program."""
    backward = cell.backward if backward is None else backward
    step_inputs = [each.detach() for each in accumulated(cell, inputs)]
    stored = evaluate(cell.step_saving, step_inputs)
    new = ["out", *(f"new_{name}" for name in cell.states)]
    names = [*new, *(f"saved_{k}" for k in range(len(cell.saved)))]
    named = dict(zip(names, stored, strict=True))
    A = len(cell.accumulators)
    named |= dict(zip(cell.step.inputs[A:], step_inputs[A:], strict=True))
    named |= {f"grad_{name}": each for name, each in zip(new, gradients, strict=True)}
    return evaluate(backward, [named[name] for name in backward.inputs])


def assert_gradients(got, expected):
    for one, other in zip(got, expected, strict=True):
        if one is None or other is None:
            assert one is None or not one.any()
            assert other is None or not other.any()
            continue
        if not isinstance(one, torch.Tensor):
            one = torch.from_numpy(np.array(one))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_cell
@pytest.mark.parametrize("evaluate", [evaluate_tensors, evaluate_arrays])
def test_backward_is_the_gradient_of_the_program(cell, evaluate):
    inputs = random_inputs(cell.program)
    gradients = [torch.randn(3, H, dtype=torch.float64) for _ in cell.program.outputs]
    got = by_program(cell, inputs, gradients, evaluate)
    assert_gradients(got, list(by_autograd(cell, inputs, gradients)))


@every_cell
def test_steps_give_what_programs_give(cell):
    inputs = random_inputs(cell.program)
    expected = evaluate_tensors(cell.program, inputs)
    for program in (cell.step, cell.step_saving):
        got = evaluate_tensors(program, accumulated(cell, inputs))
        assert all(map(torch.equal, got[: len(expected)], expected))


def saved_values(cell):
    """What the cell saves, as tensors, and the accumulators and states that it follows from."""
    inputs = accumulated(cell, random_inputs(cell.program))
    return evaluate_tensors(cell.step_saving, inputs)[len(cell.step.outputs) :], inputs


@pytest.mark.parametrize("cell", [RNN_TANH, RNN_RELU], ids=lambda cell: cell.name)
def test_an_elman_network_saves_nothing(cell):
    assert cell.saved == ()
    assert cell.backward.inputs == ("out", "grad_out", "grad_new_h")
    text = f"%3 = add(%2, %1); %4 = {cell.name}_backward(%3, %0); return %4, none"
    assert cell.backward.text == f"(out, grad_out, grad_new_h) {text}"


def test_lstm_saves_its_gates():
    saved, (i, f, g, o, *_) = saved_values(LSTM)
    expected = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
    assert [torch.equal(*pair) for pair in zip(saved, expected, strict=True)] == [True] * 4
    # tanh(c') is computed again; h is not needed.
    assert LSTM.backward.inputs[4:] == ("new_c", "c", "grad_out", "grad_new_h", "grad_new_c")
    assert [n is None for n in LSTM.backward.outputs] == [False] * 4 + [True, False]


def test_gru_saves_its_gates_and_the_hidden_part_of_n():
    saved, (r, z, zx_n, zh_n, _) = saved_values(GRU)
    expected = [r.sigmoid(), z.sigmoid(), zh_n, (zx_n + r.sigmoid() * zh_n).tanh()]
    assert [torch.equal(*pair) for pair in zip(saved, expected, strict=True)] == [True] * 4
    assert GRU.backward.inputs[4:] == ("h", "grad_out", "grad_new_h")


def test_ugrnn_saves_its_activations():
    saved, (g, c, _) = saved_values(UGRNN)
    expected = [g.sigmoid(), c.tanh()]
    assert [torch.equal(*pair) for pair in zip(saved, expected, strict=True)] == [True] * 2
    assert UGRNN.backward.inputs[2:] == ("h", "grad_out", "grad_new_h")


def test_mgu_saves_its_activations_and_the_hidden_part_of_n():
    saved, (f, zx_n, zh_n, _) = saved_values(MGU)
    expected = [f.sigmoid(), zh_n, (zx_n + f.sigmoid() * zh_n).tanh()]
    assert [torch.equal(*pair) for pair in zip(saved, expected, strict=True)] == [True] * 3


def test_accumulators_are_saved_where_more_values_would_be():
    saved, inputs = saved_values(STORES_SUMS)
    assert len(saved) == 1
    assert torch.equal(saved[0], inputs[0])


def test_a_gradient_of_a_state_that_is_out_comes_before_outs():
    for cell in (RNN_TANH, LSTM, GRU):
        inputs = cell.backward.inputs
        state, out = inputs.index("grad_new_h"), inputs.index("grad_out")
        assert f"add(%{state}, %{out})" in map(str, cell.backward.instructions)


def test_conditions_are_computed_again():
    def gated(zx, zh, h):
        z = zx[0] + zh[0]
        h = where(exp(z) > h, z * h, h)
        return tanh(z), h

    cell = make(gated, ["z"])
    gradients = [torch.randn(3, H, dtype=torch.float64) for _ in range(2)]
    inputs = random_inputs(cell.program)
    expected = list(by_autograd(cell, inputs, gradients))
    assert_gradients(by_program(cell, inputs, gradients, evaluate_tensors), expected)


def random_cell(seed):
    """A cell of bounded operations at random, with two gates, two states and a parameter."""
    drawn = random.Random(seed)
    unary = [tanh, sigmoid, relu, silu, b.softplus, abs, detach, b.leaky_relu, lambda x: -x, clamp]
    binary = [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: tanh(x) * y,
        lambda x, y: x / (1 + y * y),
        maximum,
        b.minimum,
        lambda x, y: where(x < y, x * y, 0.5),
    ]

    def function(zx, zh, h, s, p):
        values = [zx[0] + zh[0], zx[1], zh[1], h, s, p]
        for _ in range(12):
            if drawn.random() < 0.4:
                values.append(drawn.choice(unary)(drawn.choice(values)))
            else:
                values.append(drawn.choice(binary)(*drawn.choices(values, k=2)))
        h = drawn.choice(values[-3:])
        return drawn.choice([h, values[-2]]), h, values[-1]

    return CellSpec.trace(
        function, name=f"random {seed}", gates=["a", "b"], states=["h", "s"], parameters=["p"]
    )


@pytest.mark.parametrize("seed", range(40))
def test_cells_at_random(seed):
    cell = random_cell(seed)
    assert CellSpec.parse(cell.text) == cell
    assert len(cell.saved) <= len(cell.accumulators)
    assert {f"saved_{k}" for k in range(len(cell.saved))} <= cell.backward.used
    inputs = random_inputs(cell.program)
    gradients = [torch.randn(3, H, dtype=torch.float64) for _ in cell.program.outputs]
    got = by_program(cell, inputs, gradients, evaluate_tensors)
    assert_gradients(got, list(by_autograd(cell, inputs, gradients)))


@pytest.mark.parametrize("cell", [LSTM, GRU, UGRNN, MGU], ids=lambda cell: cell.name)
def test_every_instruction_of_a_backward_program_matters(cell):
    """Each instruction in turn is replaced by another operation; the gradient must differ."""
    inputs = random_inputs(cell.program)
    gradients = [torch.randn(3, H, dtype=torch.float64) for _ in cell.program.outputs]
    expected = list(by_autograd(cell, inputs, gradients))
    good = cell.backward
    for k, instruction in enumerate(good.instructions):
        arity = len(OPERATIONS[instruction.operation].arguments)
        if arity == 0:
            continue
        other = {1: "exp", 2: "div"}[arity]
        wrong = type(instruction)(other, instruction.arguments)
        changed = (*good.instructions[:k], wrong, *good.instructions[k + 1 :])
        broken = Program(good.inputs, changed, good.outputs)
        got = by_program(cell, inputs, gradients, evaluate_tensors, broken)
        with pytest.raises(AssertionError):
            assert_gradients(got, expected)
