"""Protects the kit's strength on nn.LSTM and nn.GRU: what is wrong with gates or states must fail.

The quick subset must catch every defect, by the checks that are meant to.
"""

import pytest
import torch

from rnnjit.backend import LayerOutput
from rnnjit.ir import GRU, LSTM
from rnnjit.reference import layer_backward, layer_forward_states
from rnnjit.testing import CHECKS, Case, RecomputeBackend
from rnnjit.testing.suite import pairs

VALUES = {"forward", "gradients"}
PAIRS = [
    pair for pair in pairs(quick=True) if len(pair.case.cell.gates) > 1 and not pair.case.quantized
]


class Broken(RecomputeBackend):
    name = "broken"


def kinds(layer):
    """The names of a direction's weights, in their order."""
    biases = ["b_ih", "b_hh"] if layer.bias else []
    return ["w_ih", "w_hh", *biases, *(["w_hr"] if layer.proj_size else [])]


def changed(layer, weights, **change):
    """The weights with those of some kinds changed, in every direction."""
    names = kinds(layer) * layer.num_directions
    same = {name: lambda weight: weight for name in names}
    return [(same | change)[name](w) for name, w in zip(names, weights, strict=True)]


class GatesSwapped(Broken):
    """Takes the weights of the first two gates for each other's."""

    def forward(self, layer, rows, x, hx, weights, keep):
        def swap(weight):
            first, second, *rest = weight.chunk(len(layer.cell.gates))
            return torch.cat([second, first, *rest])

        names = [name for name in kinds(layer) if name != "w_hr"]
        weights = changed(layer, weights, **dict.fromkeys(names, swap))
        return super().forward(layer, rows, x, hx, weights, keep)


class BiasOfNMerged(Broken):
    """Adds b_hn to b_in, as if the reset gate did not scale it."""

    def forward(self, layer, rows, x, hx, weights, keep):
        if layer.cell == GRU and layer.bias:
            weights, H = list(weights), layer.hidden_size
            for first in range(0, len(weights), layer.weights_per_direction):
                b_ih, b_hh = weights[first + 2].clone(), weights[first + 3].clone()
                b_ih[2 * H :] += b_hh[2 * H :]
                b_hh[2 * H :] = 0
                weights[first + 2 : first + 4] = [b_ih, b_hh]
        return super().forward(layer, rows, x, hx, weights, keep)


class StateNotProjected(Broken):
    """Keeps the first columns of the output in the place of its projection."""

    def forward(self, layer, rows, x, hx, weights, keep):
        def keeping(weight):
            return torch.eye(*weight.shape, dtype=weight.dtype)

        weights = changed(layer, weights, w_hr=keeping)
        return super().forward(layer, rows, x, hx, weights, keep)


class LastStatesAlike(Broken):
    """Returns h_n as c_n too, where it fits."""

    def forward(self, layer, rows, x, hx, weights, keep):
        y, (h, *others), *_ = super().forward(layer, rows, x, hx, weights, keep)
        others = [h.clone() if other.shape == h.shape else other for other in others]
        return LayerOutput(y, (h, *others))


class LastStatesOfDirectionsSwapped(Broken):
    """Swaps the last states of the two directions but for h."""

    def forward(self, layer, rows, x, hx, weights, keep):
        y, (h, *others), *_ = super().forward(layer, rows, x, hx, weights, keep)
        return LayerOutput(y, (h, *(other.flip(0) for other in others)))


class FirstStatesOfDirectionsSwapped(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        hx = tuple(state.flip(0) for state in hx)
        return super().forward(layer, rows, x, hx, weights, keep)


class Gradient(Broken):
    """Changes the gradients of the weights of one kind."""

    def __init__(self, kind, change):
        self.kind, self.change = kind, change

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        grads = super().backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        change = {self.kind: lambda grad: grad if grad is None else self.change(layer, grad)}
        return grads._replace(weights=tuple(changed(layer, grads.weights, **change)))


def without_last_gate(layer, grad):
    grad = grad.clone()
    grad[-layer.hidden_size :] = 0
    return grad


class BiasesShareAGradient(Broken):
    """Takes that of b_ih for b_hh, which holds for gates that are sums alone."""

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        grads = super().backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        found = list(grads.weights)
        for first in range(0, len(found), layer.weights_per_direction) if layer.bias else ():
            if found[first + 2] is not None and found[first + 3] is not None:
                found[first + 3] = found[first + 2].clone()
        return grads._replace(weights=tuple(found))


def failed(backend, cell):
    """The checks that fail in the quick cases of a cell."""
    found = set()
    for pair in PAIRS:
        if pair.name in VALUES and pair.case.cell == cell:
            try:
                pair.check.run(backend, pair.case)
            except AssertionError:
                found.add(pair.name)
    return found


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=lambda cell: cell.name)
def test_a_healthy_backend_passes(cell):
    assert failed(Broken(), cell) == set()


BROKEN = [
    (GatesSwapped(), LSTM, VALUES),
    (GatesSwapped(), GRU, VALUES),
    (BiasOfNMerged(), GRU, VALUES),
    (StateNotProjected(), LSTM, VALUES),
    (LastStatesAlike(), LSTM, VALUES),
    (LastStatesOfDirectionsSwapped(), LSTM, VALUES),
    (FirstStatesOfDirectionsSwapped(), LSTM, VALUES),
    (FirstStatesOfDirectionsSwapped(), GRU, VALUES),
    (BiasesShareAGradient(), GRU, {"gradients"}),
    *((Gradient(kind, without_last_gate), LSTM, {"gradients"}) for kind in ("w_ih", "b_hh")),
    *((Gradient(kind, without_last_gate), GRU, {"gradients"}) for kind in ("w_hh", "b_ih")),
    (Gradient("w_hr", lambda layer, grad: torch.zeros_like(grad)), LSTM, {"gradients"}),
]


@pytest.mark.parametrize(
    ("backend", "cell", "caught_by"),
    BROKEN,
    ids=[f"{type(row[0]).__name__}-{row[1].name}-{index}" for index, row in enumerate(BROKEN)],
)
def test_wrong_numbers_fail(backend, cell, caught_by):
    assert failed(backend, cell) == caught_by


class SecondState(RecomputeBackend):
    """Spoils one thing of c, and nothing of h."""

    name = "second-state"

    def __init__(self, how):
        self.how = how

    def forward(self, layer, rows, x, hx, weights, keep):
        y, (h, c), *_ = super().forward(layer, rows, x, hx, weights, keep)
        if self.how == "value":
            c = c * (1 + 1e-4)
        if self.how == "memory of its input":
            c = hx[1].data.copy_(c)  # where the core does not see it, as a kernel would
        if self.how == "memory of h":
            c = h
        return LayerOutput(y, (h, c))

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        if self.how == "gradient from it":
            grad_h_n = (grad_h_n[0], None)
        given = (layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        grads = super().backward(*given)
        if self.how == "gradient for it":
            grads = grads._replace(hx=(grads.hx[0], torch.zeros_like(grads.hx[1])))
        if self.how == "gradient written to":
            grad_h_n[1].mul_(2)
        return grads


@pytest.mark.parametrize(
    ("how", "caught_by", "words"),
    [
        ("value", "forward", "c_n is off by"),
        ("gradient from it", "gradients", "the gradient of .* is off by"),
        ("gradient for it", "gradients", "the gradient of c0 is off by"),
        ("gradient written to", "inputs_untouched", "grad_c_n was written to"),
        ("memory of its input", "inputs_untouched", "c0 was written to"),
        ("memory of h", "fresh_outputs", "c_n shares memory with h_n"),
    ],
)
def test_what_is_wrong_with_the_second_state_alone_is_seen(how, caught_by, words):
    case = Case("lstm-second-state", cell=LSTM, h0=True)
    CHECKS[caught_by].run(SecondState("nothing"), case)
    with pytest.raises(AssertionError, match=words):
        CHECKS[caught_by].run(SecondState(how), case)


class EveryState(RecomputeBackend):
    """Records c by itself, one thing of it wrong."""

    name = "every-state"

    def __init__(self, how):
        self.how = how

    def records_states(self, layer, problem):
        return True

    def forward_states(self, layer, rows, x, hx, weights, keep):
        output = layer_forward_states(layer, rows, x, hx, weights)
        (c,) = output.states
        if self.how == "a step late":
            c = torch.cat([hx[1][0], c[: -rows.B]])
        if self.how == "value":
            c = c * (1 + 1e-4)
        return output._replace(states=(c,))

    def backward_states(
        self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, grad_states, needs
    ):
        if self.how == "gradient":
            grad_states = tuple(torch.zeros_like(grad) for grad in grad_states)
        given = layer, rows, x, hx, weights, grad_y, grad_h_n, needs, grad_states
        return layer_backward(*given)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a step late", "every c is off by"),
        ("value", "every c is off by"),
        ("gradient", "the gradient of x is off by"),
    ],
)
def test_what_is_wrong_with_all_states_is_seen(how, words):
    case, check = Case("lstm-all-states", cell=LSTM, h0=True), CHECKS["all_states"]
    assert check.applies(case)
    check.run(EveryState("nothing"), case)
    with pytest.raises(AssertionError, match=words):
        check.run(EveryState(how), case)
