"""Protects the IR: canonical form, exact text, types checked when built, and its evaluation."""

import math
import operator

import pytest

from rnnjit.ir import OPERATIONS, Instruction, Program, evaluate, trace
from rnnjit.ir.builder import Builder, clamp, leaky_relu, maximum, sigmoid, tanh, where


def instructions(program):
    return [str(each) for each in program.instructions]


def test_equal_subexpressions_are_shared_and_dead_code_is_gone():
    def written_twice(a, b):
        tanh(b)  # dead
        return (a + b) * (a + b)

    program = trace(written_twice, ["a", "b"])
    assert instructions(program) == ["add(%0, %1)", "mul(%2, %2)"]
    by_hand = Program(
        ("a", "b"),
        (
            Instruction("tanh", (1,)),
            Instruction("add", (0, 1)),
            Instruction("add", (0, 1)),
            Instruction("mul", (3, 4)),
        ),
        (5,),
    )
    assert by_hand == program
    assert hash(by_hand) == hash(program)


def test_the_order_is_that_of_a_walk_from_the_outputs():
    def one(a, b):
        x, y = tanh(a), sigmoid(b)
        return x - y, y

    def other(a, b):
        y, x = sigmoid(b), tanh(a)
        return x - y, y

    program = trace(one, ["a", "b"])
    assert instructions(program) == ["tanh(%0)", "sigmoid(%1)", "sub(%2, %3)"]
    assert trace(other, ["a", "b"]) == program


def test_nothing_is_reassociated_swapped_or_folded():
    texts = {
        trace(function, ["a", "b", "c"]).text
        for function in (
            lambda a, b, c: (a + b) + c,
            lambda a, b, c: a + (b + c),
            lambda a, b, c: c + (a + b),
            lambda a, b, c: (a + b) + c + 0.0,
            lambda a, b, c: ((a + b) + c) * 1.0,
            lambda a, b, c: (a + b) + c + -0.0,
        )
    }
    assert len(texts) == 6


@pytest.mark.parametrize(
    "constant", [0.1, -0.0, 0.0, math.inf, -math.inf, 5e-324, 1e300, 1 / 3, math.nan]
)
def test_constants_survive_the_text_exactly(constant):
    program = trace(lambda x: (x * constant, leaky_relu(x, constant)), ["x"])
    parsed = Program.parse(program.text)
    assert parsed == program
    for kept in (each.constants[0] for each in parsed.instructions if each.constants):
        assert str(kept) == str(constant)
        assert math.isnan(constant) or kept.hex() == constant.hex()


def test_zeros_of_different_signs_are_different_programs():
    assert trace(lambda x: x + 0.0, ["x"]) != trace(lambda x: x + -0.0, ["x"])
    both = trace(lambda x: (x + 0.0, x + -0.0), ["x"])
    assert len(both.instructions) == 4


def test_every_operation_and_missing_outputs_survive_the_text():
    builder = Builder(["x", "y"])
    x, y = builder.inputs
    condition = x < y
    outputs = [None, x]
    for name, operation in OPERATIONS.items():
        arguments = [condition, x, y] if name == "where" else [x, y, x]
        value = builder.append(
            name, arguments[: len(operation.arguments)], [0.5] * len(operation.constants)
        )
        if operation.result.value == "condition":
            value = where(value, x, y)
        outputs.append(value)
    program = builder.finish(outputs)
    assert Program.parse(program.text) == program
    assert {each.operation for each in program.instructions} == set(OPERATIONS)
    assert program.outputs[:2] == (None, 0)


def test_a_long_program_needs_no_deep_stack():
    def many(x):
        for _ in range(5000):
            x = x + 1.0
        return x

    program = trace(many, ["x"])
    assert evaluate(program, [1.0], {"add": operator.add}, float) == (5001.0,)


def test_each_value_is_evaluated_once():
    called = []

    def add(x, y):
        called.append((x, y))
        return x + y

    program = trace(lambda x: (x + 1) * (x + 1), ["x"])
    assert evaluate(program, [2.0], {"add": add, "mul": operator.mul}, float) == (9.0,)
    assert called == [(2.0, 1.0)]


def test_unused_inputs():
    program = trace(lambda a, b, c: (c - a, c), ["a", "b", "c"])
    assert program.used == {"a", "c"}
    assert program.without_inputs(["b"]) == trace(lambda a, c: (c - a, c), ["a", "c"])
    with pytest.raises(ValueError, match="not used, got c"):
        program.without_inputs(["c"])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Program(("x",), (Instruction("cosh", (0,)),), (1,)), ValueError, "'cosh'"),
        (
            lambda: Program(("x",), (Instruction("add", (0,)),), (1,)),
            ValueError,
            "add: expected 2 arguments, got 1",
        ),
        (
            lambda: Program(("x",), (Instruction("clamp", (0,), (1.0,)),), (1,)),
            ValueError,
            r"clamp: expected 2 constants \(low, high\), got 1",
        ),
        (lambda: trace(lambda x: clamp(x, math.nan), ["x"]), ValueError, "bounds"),
        (
            lambda: Program(("x",), (Instruction("tanh", (1,)),), (1,)),
            ValueError,
            "from %0 to %0, got %1",
        ),
        (lambda: Program(("x",), (), (1,)), ValueError, "output: expected"),
        (lambda: Program(("x", "x"), (), (0,)), ValueError, "differ"),
        (lambda: Program(("x y",), (), (0,)), ValueError, "identifiers, got 'x y'"),
        (lambda: trace(lambda x: x + (x < 1), ["x"]), TypeError, "add: expected a number"),
        (lambda: trace(lambda x: x < 1, ["x"]), TypeError, "output: expected a number"),
        (lambda: trace(lambda x: where(x, 1, 0), ["x"]), TypeError, "expected a condition"),
        (lambda: trace(lambda x: x * True, ["x"]), TypeError, "got True"),
        (lambda: trace(lambda x: maximum(x, "1"), ["x"]), TypeError, "got '1'"),
        (lambda: trace(lambda x: tanh(1.0), ["x"]), TypeError, "a traced value"),
        (lambda: trace(lambda x: 1 if x > 0 else x, ["x"]), TypeError, "use where"),
        (lambda: Program.parse("x"), ValueError, "expected a program"),
        (lambda: Program.parse("(x) %1 = tanh(%0) return %1"), ValueError, "';'"),
        (lambda: Program.parse("(x) %2 = tanh(%0); return %2"), ValueError, "'%1 = "),
        (lambda: Program.parse("(x) %1 = tanh(x); return %1"), ValueError, "then constants"),
        (lambda: Program.parse("(x) return x"), ValueError, "such as %0, got 'x'"),
    ],
)
def test_errors_say_what_was_expected(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_values_of_two_programs_do_not_mix():
    other = Builder(["y"]).inputs[0]
    with pytest.raises(ValueError, match="values of one program"):
        trace(lambda x: x + other, ["x"])


def test_evaluation_names_what_is_missing():
    program = trace(lambda x, y: tanh(x) + y, ["x", "y"])
    with pytest.raises(ValueError, match=r"expected 2 inputs \(x, y\), got 1"):
        evaluate(program, [1.0], {}, float)
    with pytest.raises(NotImplementedError, match="'tanh' is not lowered: expected one of add"):
        evaluate(program, [1.0, 2.0], {"add": operator.add}, float)
