"""Cells of any form, for most of which torch has no layer, and what a backend makes of them."""

from __future__ import annotations

import torch

from rnnjit import LayerOutput, LayerSpec, Needs, Problem, RNNSpec, Rows
from rnnjit.ir import GRU, LSTM, OPERATIONS, RNN_RELU, RNN_TANH, CellSpec, normal_form
from rnnjit.ir.builder import (
    clamp,
    detach,
    exp,
    expm1,
    leaky_relu,
    log,
    log1p,
    maximum,
    minimum,
    relu,
    sigmoid,
    sign,
    silu,
    softplus,
    sqrt,
    tanh,
    where,
    with_slope,
)
from rnnjit.reference import layer_backward, layer_forward


def elman(name, function):
    """The cell h' = function(z)."""

    def step(zx, zh, h):
        out = function(zx[0] + zh[0])
        return out, out

    return CellSpec.trace(step, name=name, gates=["z"], states=["h"])


def traced(function, states=("h",), parameters=(), operand=None, gates=("z",), **names):
    return CellSpec.trace(
        *(function,),
        **{"name": "mine", **names},
        gates=gates,
        states=states,
        parameters=parameters,
        operand=operand,
    )


def normal(function, **options):
    """The normal form of a cell."""
    return normal_form(traced(function, **options)).cell


def leaky(zx, zh, h):
    h = 0.7 * h + 0.3 * tanh(zx[0] + zh[0])
    return h, h


def apart(zx, zh, h):
    h = tanh(zx[0]) + 0.5 * sigmoid(zh[0])
    return h, h


def parts_first(zx, zh, h):
    """Gates whose parts are used apart, summed, and apart, and one that drops its zh."""
    h = tanh(zx[0] * sigmoid(zh[0])) * sigmoid(zx[1] + zh[1]) + relu(zh[2]) * 0.1 * zx[2]
    return h + 0.1 * tanh(zx[3]), h + 0.1 * tanh(zx[3])


def three_states(zx, zh, h, c, n):
    f, g = sigmoid(zx[0] + zh[0]), tanh(zx[1] + zh[1])
    n = 0.9 * n + 1.0
    c = f * c + (1.0 - f) * g
    h = tanh(c / n + 0.1 * h)
    return h, h, c, n


def leaky_rate(zx, zh, v, alpha, noise):
    """A firing-rate network, whose operand is a further state of its normal form."""
    share = sigmoid(alpha)
    v = (1.0 - share) * v + share * (zx[0] + zh[0]) + 0.1 * noise
    return relu(v), v


def peephole(zx, zh, h, c, p_i, p_f, p_o):
    i, f, g, o = (x + y for x, y in zip(zx, zh, strict=True))
    c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    h = sigmoid(o + p_o * c) * tanh(c)
    return h, h, c


def independent(zx, zh, h, u):
    """IndRNN: no recurrent product."""
    h = leaky_relu(zx[0] + tanh(u) * h, 0.1)
    return h, h


def integrators(zx, zh, h, c, tau, span, drive):
    """No recurrent product, two gates, a parameter, two row inputs."""
    keep = exp(-softplus(tau) * abs(span))
    c = keep * c + (1.0 - keep) * (tanh(zx[0]) + drive)
    h = sigmoid(zx[1]) * c + 0.1 * h
    return h, h, c


def spiking(zx, zh, s, v, beta):
    """Spikes with a surrogate gradient; beta decays the potential."""
    v = sigmoid(beta) * v * (1.0 - detach(s)) + zx[0] + zh[0]
    over = v - 1.0
    near = 1.0 + abs(over)
    spike = with_slope(detach(where(over > 0.0, 1.0, 0.0)), over, 1.0 / (near * near))
    return spike, spike, v


def gru_1(zx, zh, h, drive, dropped):
    """Parts zx and zh apart, one zx unused, and a row input that no gradient reaches."""
    r, z = sigmoid(drive + zh[0]), sigmoid(zx[1] + zh[1])
    n = tanh(zx[2] + r * zh[2])
    h = (1.0 - z) * n + z * h + 0.1 * sign(dropped)
    return h, h


def recurrent_alone(zx, zh, h, unused, bias, drive):
    """Uses no W_ih x, and one of its parameters in no way."""
    h = tanh(zh[0] + bias * drive)
    return h, h


def all_operations(zx, zh, h, c, scale, width, noise):
    """Every operation of the IR."""
    a, b = zx[0] + zh[0], zx[1] + zh[1]
    positive = softplus(a) + 0.1
    n = tanh(log(positive) * scale) + 0.5 * expm1(-abs(b)) - silu(noise) * 0.1
    n = n + 0.2 * log1p(positive * positive) / sqrt(positive) + 0.1 * leaky_relu(b, 0.2)
    low, high = minimum(a, width), maximum(a, b)
    n = n + 0.1 * clamp(low, -0.8, 0.9) + 0.1 * relu(high) * sign(noise)
    n = where(a <= b, n, where(a != width, sigmoid(n), where(a == b, a, b)))
    n = where(noise >= 1.5, n * exp(-positive), where(noise < -1.5, n + detach(c) * 0.1, n))
    n = with_slope(n, a, where(a > 0.3, 0.1, 0.2))
    c = 0.5 * c + 0.5 * n
    h = 0.3 * h + 0.7 * tanh(c)
    return h, h, c


#: In normal form; with parameters, row inputs, or without a recurrent product.
WIDER_CELLS = [
    traced(
        *(peephole, ("h", "c"), ("p_i", "p_f", "p_o")),
        gates="ifgo",
        name="peephole",
    ),
    normal(
        leaky_rate,
        states=("v",),
        parameters=("alpha",),
        operand=lambda v, alpha: relu(v),
        row_inputs=("noise",),
        name="leaky rate",
    ),
    traced(independent, parameters=("u",), name="independent"),
    traced(
        *(integrators, ("h", "c"), ("tau",)),
        gates="cg",
        row_inputs=("span", "drive"),
        name="integrators",
    ),
    traced(spiking, ("s", "v"), ("beta",), name="spiking"),
    traced(gru_1, gates="rzn", row_inputs=("drive", "dropped"), name="gru 1"),
    traced(
        recurrent_alone,
        parameters=("unused", "bias"),
        row_inputs=("drive",),
        name="recurrent alone",
    ),
    traced(
        *(all_operations, ("h", "c"), ("scale", "width")),
        gates="ab",
        row_inputs=("noise",),
        name="all operations",
    ),
]
assert set().union(*(cell.operations for cell in WIDER_CELLS)) == set(OPERATIONS)
CELLS = [
    LSTM,
    GRU,
    elman("sigmoid", sigmoid),
    traced(leaky, name="leaky"),
    traced(apart, name="apart"),
    traced(parts_first, gates="abcd", name="parts first"),
    traced(three_states, states=("h", "c", "n"), gates="fg", name="three states"),
    elman("silu", silu),
    elman("small exp", lambda z: exp(0.1 * z - 3.0)),
    elman("linear", lambda z: z * 0.9),
    elman("constant to gradients", lambda z: tanh(detach(z))),
]
CALLS = {
    # lengths, I, H, directions, bias, packed
    "dense": ((7, 7, 7), 5, 9, 1, True, False),
    "one row": ((4,), 3, 33, 1, True, False),
    "no bias, two directions": ((6, 6), 4, 17, 2, False, False),
    "packed": ((9, 5, 5, 1), 6, 20, 2, True, True),
    "many rows": ((30,) * 13, 8, 40, 1, True, False),
}
#: Calls of layers whose whole input is row inputs.
CALLS_WITHOUT_INPUT = {
    "no input": ((6, 6, 6), 0, 19, 2, True, False),
    "no input, packed, no bias": ((7, 4, 1), 0, 33, 1, False, True),
}


def given(call, cell, dtype):
    lengths, I, H, directions, bias, packed = (CALLS | CALLS_WITHOUT_INPUT)[call]
    layer = LayerSpec(cell, I, H, directions, bias)
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    rows = Rows(len(sizes), len(lengths), sum(sizes), torch.tensor(sizes) if packed else None)
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    matrices = layer.weights_per_direction - len(cell.parameters)
    scales = [0.5 * H**-0.5] * matrices + [0.5] * len(cell.parameters)
    shapes = zip(layer.weight_shapes * directions, scales * directions, strict=True)
    weights = [random(*shape, scale=scale) for shape, scale in shapes]

    def states():
        return tuple(random(directions, rows.B, H) for _ in cell.states)

    grads = random(rows.N, directions * H), states()
    return layer, rows, random(rows.N, layer.features), states(), weights, grads


def close(found, expected, dtype):
    tolerance = 1e-10 if dtype is torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def agrees(backend, cell, call, dtype):
    """Assert that a backend's results of one of `CALLS` are those of the reference."""
    layer, rows, x, hx, weights, (grad_y, grad_h_n) = given(call, cell, dtype)
    needs = Needs(True, (True,) * len(hx), (True,) * len(weights))
    found = backend.forward(layer, rows, x, hx, weights, True)
    grads = backend.backward(
        *(layer, rows, x, hx, weights, LayerOutput(*found)), grad_y, grad_h_n, needs
    )
    x, grad_y, *weights = (tensor.double() for tensor in (x, grad_y, *weights))
    hx, grad_h_n = (tuple(state.double() for state in states) for states in (hx, grad_h_n))
    y, h_n = layer_forward(layer, rows, x, hx, weights)
    expected = layer_backward(layer, rows, x, hx, weights, grad_y, grad_h_n, needs)
    close(found.y, y, dtype)
    for ours, theirs in zip(found.h_n, h_n, strict=True):
        close(ours, theirs, dtype)
    for ours, theirs in zip(
        (grads.x, *grads.hx, *grads.weights),
        (expected.x, *expected.hx, *expected.weights),
        strict=True,
    ):
        close(ours, torch.zeros_like(ours).double() if theirs is None else theirs, dtype)


def stacked(backend, cell):
    """Assert that a stack of layers by `shortcut` gives the bits of its layers one by one.

    Returns:
        (spec, x, hx, weights, y, h_n) of that stack.
    """
    T, B = 5, 3
    spec = RNNSpec(4, 11, num_layers=2, cell=cell)
    generator = torch.Generator().manual_seed(0)
    weights = tuple(torch.randn(shape, generator=generator) * 0.3 for shape in spec.weight_shapes)
    x = torch.randn(T, B, 4, generator=generator)
    hx = tuple(torch.randn(2, B, 11, generator=generator) for _ in cell.states)
    rows, below, last = Rows(T, B, T * B), x.flatten(0, 1), []
    for index, layer in enumerate(spec.layers):
        count = layer.weights_per_direction
        own = weights[count * index : count * (index + 1)]
        states = tuple(state[index, None] for state in hx)
        below, h_n, *_ = backend.forward(layer, rows, below, states, own, False)
        last.append(h_n)
    problem = Problem(torch.float32, "cpu", T, B, T * B, False, False)
    y, h_n = backend.shortcut(spec, problem, (T, B, 11))(x, hx, weights)
    assert torch.equal(y.flatten(0, 1), below)
    for whole, layers in zip(h_n, zip(*last, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(layers))
    return spec, x, hx, weights, y, h_n


#: Cells that the CPU kernels decline, and words of each of the reasons.
DECLINED = [
    (traced(lambda zx, zh, h: (tanh(zx[0] + zh[0]),) * 2, operand=relu), ["recurrent operand"]),
    (
        traced(lambda zx, zh, h: (relu(tanh(zx[0] + zh[0])), tanh(zx[0] + zh[0]))),
        ["output is not its first state"],
    ),
    (
        traced(
            lambda zx, zh, h, c, p: (c, c * 2.0, p), ("h", "c"), ["p"], operand=lambda h, c, p: c
        ),
        ["recurrent operand", "output is not its first state"],
    ),
]


def accepts_what_it_should(backend):
    """Assert that a backend of CPU kernels takes all `CELLS`, and projections of some."""
    problem = Problem(torch.float32, "cpu", 3, 2, 6, False, True)
    for cell in (RNN_TANH, RNN_RELU, *CELLS, *WIDER_CELLS):
        assert backend.why_not_cell(cell) == []
        assert cell.operations <= backend.operations
        assert backend.why_not(RNNSpec(2, 3, cell=cell), problem) == []
    assert backend.why_not(RNNSpec(2, 3, cell=LSTM, proj_size=1), problem) == []
    for cell in (RNN_TANH, GRU, WIDER_CELLS[0]):
        (reason,) = backend.why_not(RNNSpec(2, 3, cell=cell, proj_size=1), problem)
        assert "proj_size" in reason
    assert backend.operations == set(OPERATIONS)
