"""The derivative of a program, as a program.

Reverse mode (Griewank & Walther, Evaluating Derivatives, 2nd ed. 2008, section 3.2): the
instructions are visited from last to first, and each adds to the gradients of its arguments: for
y = f(.., x, ..) it adds dL/dx += dL/dy * df/dx. The formulas, their order of operations and their
conventions where f has no derivative are those of torch's derivatives.yaml, with the incoming
gradient as the first factor. The gradient of a value is None, not zero, if no gradient reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rnnjit.ir.builder import Builder, Value, exp, sigmoid, sign, where
from rnnjit.ir.program import Instruction, Program

#: Computes the gradients of an instruction's arguments from the gradient of its result, the
#: arguments, the result and the constants.
_Rule = Callable[[Value, Sequence[Value], Value, Sequence[float]], tuple[Value | None, ...]]


def derivative(program: Program, gradients: Sequence[str]) -> Program:
    """Derive the program that computes the gradients of a program's inputs.

        >>> derivative(Program.parse("(a, b) %2 = mul(%0, %1); return %2"), ["grad"])
        Program.parse('(a, b, grad) %3 = mul(%2, %1); %4 = mul(%2, %0); return %3, %4')

    Args:
        program: the program to differentiate.
        gradients: for each output, the name of the new input that holds its gradient.

    Returns:
        A program with the inputs `program.inputs + gradients`, and one output per input of
        `program`.

    Raises:
        ValueError: the number of names is not the number of outputs.
        NotImplementedError: the program has operations that only derivatives may have.
    """
    if len(gradients) != len(program.outputs):
        raise ValueError(f"expected {len(program.outputs)} gradients, got {len(gradients)}")
    builder = Builder([*program.inputs, *gradients])
    inputs = builder.inputs[: len(program.inputs)]
    values = replay(builder, program, inputs)
    seeds = [
        (output, gradient)
        for output, gradient in zip(program.outputs, builder.inputs[len(inputs) :], strict=True)
        if output is not None
    ]
    found = backpropagate(builder, program, values, seeds)
    return builder.finish(found[: len(inputs)])


def replay(builder: Builder, program: Program, inputs: Sequence[Value]) -> list[Value]:
    """Append a program's instructions; return its values, by their numbers in the program."""
    values = list(inputs)
    for instruction in program.instructions:
        values.append(builder.replay(instruction, values))
    return values


def backpropagate(
    builder: Builder,
    program: Program,
    values: Sequence[Value],
    seeds: Iterable[tuple[int, Value]],
) -> list[Value | None]:
    """Append the gradients of all values of a program.

    Args:
        builder: the builder to append to.
        program: the program to differentiate.
        values: its values in the builder, by their numbers in the program.
        seeds: pairs of a value's number and its incoming gradient, which are added in this order.

    Returns:
        The gradient of each value, by its number; None if no gradient reaches it.
    """
    found: list[Value | None] = [None] * len(values)

    def accumulate(number: int, gradient: Value) -> None:
        before = found[number]
        found[number] = gradient if before is None else before + gradient

    for number, gradient in seeds:
        accumulate(number, gradient)
    first = len(program.inputs)
    for number in reversed(range(first, len(values))):
        incoming = found[number]
        if incoming is None:
            continue
        instruction = program.instructions[number - first]
        arguments = [values[each] for each in instruction.arguments]
        shares = _rule(instruction)(incoming, arguments, values[number], instruction.constants)
        for argument, share in zip(instruction.arguments, shares, strict=True):
            if share is not None:
                accumulate(argument, share)
    return found


def _rule(instruction: Instruction) -> _Rule:
    try:
        return _RULES[instruction.operation]
    except KeyError:
        raise NotImplementedError(
            f"{instruction.operation} occurs only in derivatives, and cannot be differentiated"
        ) from None


def _unary(rule: Callable[[Value, Value, Value], Value]) -> _Rule:
    """The rule of a unary operation; `rule` takes its gradient, argument and result."""
    return lambda grad, arguments, result, constants: (rule(grad, arguments[0], result),)


def _binary(
    left: Callable[[Value, Value, Value], Value], right: Callable[[Value, Value, Value], Value]
) -> _Rule:
    """The rule of a binary operation; `left` and `right` take its gradient and arguments."""
    return lambda grad, arguments, result, constants: (
        left(grad, arguments[0], arguments[1]),
        right(grad, arguments[0], arguments[1]),
    )


def _by_result(operation: str) -> _Rule:
    """The rule of an operation whose derivative is an operation on its result."""
    return lambda grad, arguments, result, constants: (
        grad.builder.append(operation, (grad, result)),
    )


def _extremum(loses: Callable[[Value, Value], Value]) -> _Rule:
    """The rule of minimum and maximum; `loses(x, y)` is the condition that the result is y."""

    def share(grad: Value, x: Value, y: Value) -> Value:
        return where(loses(x, y), 0.0, where(x == y, grad / 2, grad))

    return _binary(share, lambda grad, x, y: where(loses(y, x), 0.0, where(x == y, grad / 2, grad)))


def _clamp(
    grad: Value, arguments: Sequence[Value], result: Value, constants: Sequence[float]
) -> tuple[Value, ...]:
    (x,), (low, high) = arguments, constants
    return (where(x >= low, where(x <= high, grad, 0.0), 0.0),)


def _leaky_relu(
    grad: Value, arguments: Sequence[Value], result: Value, constants: Sequence[float]
) -> tuple[Value, ...]:
    (x,), (slope,) = arguments, constants
    return (where(x > 0, grad, grad * slope),)


def _where(
    grad: Value, arguments: Sequence[Value], result: Value, constants: Sequence[float]
) -> tuple[Value | None, ...]:
    condition = arguments[0]
    return None, where(condition, grad, 0.0), where(condition, 0.0, grad)


def _silu(grad: Value, x: Value, result: Value) -> Value:
    s = sigmoid(x)
    return grad * s * (1 + x * (1 - s))


def _softplus(grad: Value, x: Value, result: Value) -> Value:
    e = exp(x)
    return where(x > 20, grad, grad * e / (e + 1))


def _none(
    grad: Value, arguments: Sequence[Value], result: Value, constants: Sequence[float]
) -> tuple[None, ...]:
    return (None,) * len(arguments)


_RULES: Mapping[str, _Rule] = {
    "constant": _none,
    "add": _binary(lambda grad, x, y: grad, lambda grad, x, y: grad),
    "sub": _binary(lambda grad, x, y: grad, lambda grad, x, y: -grad),
    "mul": _binary(lambda grad, x, y: grad * y, lambda grad, x, y: grad * x),
    "div": _binary(lambda grad, x, y: grad / y, lambda grad, x, y: -grad * ((x / y) / y)),
    "neg": _unary(lambda grad, x, result: -grad),
    "exp": _unary(lambda grad, x, result: grad * result),
    "log": _unary(lambda grad, x, result: grad / x),
    "log1p": _unary(lambda grad, x, result: grad / (x + 1)),
    "expm1": _unary(lambda grad, x, result: grad * (result + 1)),
    "sqrt": _unary(lambda grad, x, result: grad / (2 * result)),
    "tanh": _by_result("tanh_backward"),
    "sigmoid": _by_result("sigmoid_backward"),
    "relu": _by_result("relu_backward"),
    "leaky_relu": _leaky_relu,
    "softplus": _unary(_softplus),
    "silu": _unary(_silu),
    "abs": _unary(lambda grad, x, result: grad * sign(x)),
    "sign": _none,
    "minimum": _extremum(lambda x, y: x > y),
    "maximum": _extremum(lambda x, y: x < y),
    "clamp": _clamp,
    "where": _where,
    "detach": _none,
    "with_slope": lambda grad, arguments, result, constants: (grad, grad * arguments[2], None),
}
