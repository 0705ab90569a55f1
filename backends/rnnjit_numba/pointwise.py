"""The pointwise part of the layer and its derivative, on one vector at a time.

For tanh see `rnnjit.cpu.tanh`.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from rnnjit.cpu import TANH
from rnnjit_numba.lanes import Lanes, emitting


def tanh(lanes: Lanes, builder: Any, x: Any) -> Any:
    """Tanh of a vector."""
    k = TANH[lanes.bits]
    size = lanes.call(builder, "fabs", x)
    limit = lanes.constant(k.saturation)
    size = builder.select(builder.fcmp_ordered(">", size, limit), limit, size)
    shift = lanes.constant(k.round_shift)
    scaled = lanes.multiply_add(builder, size, lanes.constant(2.0 / math.log(2.0)), shift)
    n = builder.fsub(scaled, shift)
    y = builder.fadd(size, size)
    r = lanes.multiply_add(builder, n, lanes.constant(-k.ln2_high), y)
    r = lanes.multiply_add(builder, n, lanes.constant(-k.ln2_low), r)
    p = lanes.constant(1.0 / math.factorial(k.degree))
    for power in range(k.degree - 1, 1, -1):
        p = lanes.multiply_add(builder, p, r, lanes.constant(1.0 / math.factorial(power)))
    p = lanes.multiply_add(builder, builder.fmul(r, r), p, r)
    bits = builder.add(builder.bitcast(scaled, lanes.integer), lanes.integers(k.bias))
    scale = builder.bitcast(builder.shl(bits, lanes.integers(k.mantissa_bits)), lanes.vector)
    e = lanes.multiply_add(builder, scale, p, builder.fsub(scale, lanes.constant(1.0)))
    two = lanes.constant(2.0)
    far = builder.fcmp_ordered(">", e, two)
    ratio = builder.fdiv(builder.select(far, two, e), builder.fadd(e, two))
    value = builder.select(far, builder.fsub(lanes.constant(1.0), ratio), ratio)
    return lanes.call(builder, "copysign", value, x)


def relu(lanes: Lanes, builder: Any, x: Any) -> Any:
    """max(x, 0) of a vector, NaN staying NaN."""
    zero = lanes.constant(0.0)
    return builder.select(builder.fcmp_ordered("<", x, zero), zero, x)


def tanh_gradient(lanes: Lanes, builder: Any, grad: Any, h: Any) -> Any:
    """Grad * (1 - h^2): the gradient of the pre-activation, given that of h = tanh(z)."""
    slope = lanes.multiply_add(builder, builder.fneg(h), h, lanes.constant(1.0))
    return builder.fmul(grad, slope)


def relu_gradient(lanes: Lanes, builder: Any, grad: Any, h: Any) -> Any:
    """Grad where h > 0, else 0; where h is NaN, grad."""
    zero = lanes.constant(0.0)
    return builder.select(builder.fcmp_ordered("<=", h, zero), zero, grad)


#: What a cell's name means to the kernels: its code in their arguments, activation and gradient.
CELLS = {"tanh": (0, tanh, tanh_gradient), "relu": (1, relu, relu_gradient)}


def activate(lanes: Lanes) -> Any:
    """Intrinsic `activate(cell, address, count)`: h = activation(z) in place, on `count` lanes."""

    def emit(builder: Any, cell: Any, address: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)
        z = lanes.masked_load(builder, address, mask)
        h = _by_cell(lanes, builder, cell, [entry[1] for entry in CELLS.values()], z)
        lanes.masked_store(builder, h, address, mask)

    return emitting(3, emit)


def activate_gradient(lanes: Lanes) -> Any:
    """Intrinsic `activate_gradient(cell, dz, grad_y, h, count)`, on `count` lanes at each address.

    Computes dz = (dz + grad_y) * activation'(z), the derivative expressed by h = activation(z).
    `grad_y` may be 0: no gradient but the one that `dz` holds already.
    """

    def emit(builder: Any, cell: Any, dz: Any, grad_y: Any, h: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)
        present = builder.icmp_signed("!=", grad_y, ir.Constant(grad_y.type, 0))
        no_lanes = ir.Constant(mask.type, None)
        wanted = builder.select(present, mask, no_lanes)
        total = builder.fadd(
            lanes.masked_load(builder, dz, mask), lanes.masked_load(builder, grad_y, wanted)
        )
        state = lanes.masked_load(builder, h, mask)
        z = _by_cell(lanes, builder, cell, [entry[2] for entry in CELLS.values()], total, state)
        lanes.masked_store(builder, z, dz, mask)

    return emitting(5, emit)


def _by_cell(lanes: Lanes, builder: Any, cell: Any, functions: list[Any], *args: Any) -> Any:
    """The result of the function that `cell` numbers; all lanes take the same way."""
    start = builder.block
    end = builder.append_basic_block("cell_end")
    switch = None
    results = []
    for code, function in enumerate(functions):
        block = builder.append_basic_block(f"cell{code}")
        if switch is None:
            builder.position_at_end(start)
            switch = builder.switch(cell, block)
        else:
            switch.add_case(cell.type(code), block)
        builder.position_at_end(block)
        results.append((function(lanes, builder, *args), builder.block))
        builder.branch(end)
    builder.position_at_end(end)
    joined = builder.phi(lanes.vector)
    for value, block in results:
        joined.add_incoming(value, block)
    return joined
