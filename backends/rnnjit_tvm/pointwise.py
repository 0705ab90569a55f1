"""The pointwise part of the layer and its derivative, on blocks of rows in place.

For tanh see `rnnjit.cpu.tanh`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.cpu import TANH
from rnnjit_tvm.arguments import CELLS
from rnnjit_tvm.tensorir import Lanes, Module, address, call, integer, loop, when


def tanh(lanes: Lanes, x: Any) -> Any:
    """Tanh of a vector."""
    k = TANH[lanes.bits]
    size = T.bind(lanes.call("fabs", x))
    limit = lanes.constant(k.saturation)
    size = T.bind(T.Select(size > limit, limit, size))
    shift = lanes.constant(k.round_shift)
    scaled = T.bind(lanes.multiply_add(size, lanes.constant(2.0 / math.log(2.0)), shift))
    n = T.bind(scaled - shift)
    r = T.bind(lanes.multiply_add(n, lanes.constant(-k.ln2_high), size + size))
    r = T.bind(lanes.multiply_add(n, lanes.constant(-k.ln2_low), r))
    p = lanes.constant(1.0 / math.factorial(k.degree))
    for power in range(k.degree - 1, 1, -1):
        p = T.bind(lanes.multiply_add(p, r, lanes.constant(1.0 / math.factorial(power))))
    p = lanes.multiply_add(r * r, p, r)
    bits = T.reinterpret(lanes.integer, scaled) + lanes.integers(k.bias)
    shifted = T.shift_left(bits, lanes.integers(k.mantissa_bits))
    scale = T.bind(T.reinterpret(lanes.vector, shifted))
    e = T.bind(lanes.multiply_add(scale, p, scale - lanes.constant(1.0)))
    two = lanes.constant(2.0)
    ratio = T.bind(T.Select(e > two, two, e) / (e + two))
    value = T.Select(e > two, lanes.constant(1.0) - ratio, ratio)
    return lanes.call("copysign", value, x)


def relu(lanes: Lanes, x: Any) -> Any:
    """max(x, 0) of a vector, NaN staying NaN."""
    return T.Select(x < lanes.zeros(), lanes.zeros(), x)


def tanh_gradient(lanes: Lanes, grad: Any, h: Any) -> Any:
    """Grad * (1 - h^2): the gradient of the pre-activation, given that of h = tanh(z)."""
    slope = lanes.multiply_add(lanes.zeros() - h, h, lanes.constant(1.0))
    return grad * slope


def relu_gradient(lanes: Lanes, grad: Any, h: Any) -> Any:
    """Grad where h > 0, else 0; where h is NaN, grad."""
    return T.Select(h <= lanes.zeros(), lanes.zeros(), grad)


_FORWARD = {CELLS["tanh"]: tanh, CELLS["relu"]: relu}
_BACKWARD = {CELLS["tanh"]: tanh_gradient, CELLS["relu"]: relu_gradient}


def add_activate(module: Module) -> None:
    """PrimFunc `activate(z, ld, rows, columns, cell)`: h = activation(z)."""

    def body(z: Any, ld: Any, rows: Any, columns: Any, cell: Any) -> None:
        for code, function in _FORWARD.items():
            with when(cell == code):
                call(_name("forward", function), address(z, integer(0)), ld, rows, columns)

    for function in _FORWARD.values():
        _add_forward(module, function)
    module.add("activate", ["z"], ["ld", "rows", "columns", "cell"], body)


def add_activate_gradient(module: Module) -> None:
    """PrimFunc `activate_gradient(dz, h, grad, ld, ld_grad, rows, columns, cell)`.

    dz = (dz + grad) * activation'(z), the derivative expressed by h = activation(z). `ld` is the
    distance of rows of dz and h, `ld_grad` that of rows of grad.
    """

    def body(
        dz: Any, h: Any, grad: Any, ld: Any, ld_grad: Any, rows: Any, columns: Any, cell: Any
    ) -> None:
        pointers = [address(each, integer(0)) for each in (dz, h, grad)]
        for code, function in _BACKWARD.items():
            with when(cell == code):
                call(_name("backward", function), *pointers, ld, ld_grad, rows, columns)

    for function in _BACKWARD.values():
        _add_backward(module, function)
    sizes = ["ld", "ld_grad", "rows", "columns", "cell"]
    module.add("activate_gradient", ["dz", "h", "grad"], sizes, body)


def _add_forward(module: Module, function: Callable[..., Any]) -> None:
    lanes = module.lanes

    def body(z: Any, ld: Any, rows: Any, columns: Any) -> None:
        def whole(index: Any) -> None:
            T.buffer_store(z, function(lanes, T.bind(z[lanes.at(index)])), [lanes.at(index)])

        def part(index: Any, count: Any) -> None:
            x = T.bind(lanes.load(z, index, count))
            lanes.store(z, index, function(lanes, x), count)

        with loop(integer(0), rows) as r:
            _vectors(lanes, r * ld, columns, whole, part)

    module.add(_name("forward", function), ["z"], ["ld", "rows", "columns"], body)


def _add_backward(module: Module, function: Callable[..., Any]) -> None:
    lanes = module.lanes

    def body(dz: Any, h: Any, grad: Any, ld: Any, ld_grad: Any, rows: Any, columns: Any) -> None:
        with loop(integer(0), rows) as r:
            # Where a row of grad is, seen from the same row of dz.
            ahead = T.bind(r * (ld_grad - ld))

            def whole(index: Any) -> None:
                at = lanes.at(index)
                total = T.bind(dz[at] + grad[lanes.at(index + ahead)])
                T.buffer_store(dz, function(lanes, total, T.bind(h[at])), [at])

            def part(index: Any, count: Any) -> None:
                held = lanes.load(dz, index, count)
                total = T.bind(held + lanes.load(grad, index + ahead, count))
                state = T.bind(lanes.load(h, index, count))
                lanes.store(dz, index, function(lanes, total, state), count)

            _vectors(lanes, r * ld, columns, whole, part)

    pointers, sizes = ["dz", "h", "grad"], ["ld", "ld_grad", "rows", "columns"]
    module.add(_name("backward", function), pointers, sizes, body)


def _vectors(
    lanes: Lanes,
    start: Any,
    columns: Any,
    whole: Callable[[Any], None],
    part: Callable[[Any, Any], None],
) -> None:
    """Call `whole` for each full vector of a row, and `part` for what is left of it."""
    full = T.bind(T.truncdiv(columns, integer(lanes.count)))
    with loop(integer(0), full) as v:
        whole(T.bind(start + v * lanes.count))
    left = T.bind(columns - full * lanes.count)
    with when(left > 0):
        part(T.bind(start + full * lanes.count), left)


def _name(pass_: str, function: Callable[..., Any]) -> str:
    return f"{pass_}_{function.__name__}"
