"""Protects programs of a cell that torch does not have, held against a loop written by hand."""

import torch
from program_steps import Steps

from rnnjit import RNNSpec, Rows
from rnnjit.artifact.weights import pack
from rnnjit.ir import CellSpec
from rnnjit.ir.builder import sigmoid, tanh
from rnnjit_numba import BACKEND

I, H, L = 7, 13, 2


def averaged(zx, zh, h, mean, count):
    """Three states; one gate is used as a sum, one in its parts."""
    f, g = sigmoid(zx[0] + zh[0]), tanh(zx[1]) * sigmoid(zh[1])
    count = count + f
    mean = mean + (g - mean) / count
    return mean + 0.1 * h, mean + 0.1 * h, mean, count


CELL = CellSpec.trace(averaged, name="averaged", gates=["f", "g"], states=["h", "mean", "count"])


def by_hand(x, states, w_ih, w_hh, b_ih, b_hh):
    """The outputs and last states of a layer, in the order of its weights."""
    h, mean, count = states
    outputs = []
    for row in x:
        zx, zh = row @ w_ih.t() + b_ih, h @ w_hh.t() + b_hh
        f = (zx[:, :H] + zh[:, :H]).sigmoid()
        g = zx[:, H:].tanh() * zh[:, H:].sigmoid()
        count = count + f
        mean = mean + (g - mean) / count
        h = mean + 0.1 * h
        outputs.append(h)
    return torch.stack(outputs), (h, mean, count)


def test_a_cell_of_three_states():
    torch.manual_seed(0)
    spec, T, B = RNNSpec(I, H, L, CELL), 5, 9
    program = BACKEND.build(spec, torch.float64, "native", "net")
    weights = [torch.randn(shape, dtype=torch.float64) for shape in spec.weight_shapes]
    x = torch.randn(T, B, I, dtype=torch.float64)
    # A count of at least 1 keeps the quotient tame.
    states = tuple(1 + torch.rand(s, dtype=torch.float64) for s in spec.state_shapes(B))
    y, lasts = x, []
    for layer in range(L):
        own = weights[4 * layer : 4 * layer + 4]
        y, last = by_hand(y, [state[layer] for state in states], *own)
        lasts.append(last)
    expected = [y.flatten(0, 1), *(torch.stack(each) for each in zip(*lasts, strict=True))]

    block = torch.frombuffer(bytearray(pack(spec, weights)), dtype=torch.uint8)
    run = BACKEND.load(program, spec, torch.float64, "net")
    found = run(Rows(T, B, T * B), x, states, block)
    steps = Steps(program.files["net.o"], "net", 3).run(x, states, H, block)
    for which in (found, steps):
        torch.testing.assert_close([which[0], *which[1]], expected, rtol=1e-12, atol=1e-13)
    header = program.files["net.h"].decode()
    assert "const net_real *h0, const net_real *mean0, const net_real *count0" in header
    assert "#define net_num_states 3" in header
