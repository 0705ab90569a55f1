"""Protects the normal form of cells: backends compute it in place of what the user wrote."""

import pytest
import torch
from covered import in_turn

from rnnjit import LayerSpec, Rows
from rnnjit.ir import GRU, LSTM, RNN_TANH, CellSpec, derivative, normal_form, trace
from rnnjit.ir.builder import detach, relu, sigmoid, tanh, where, with_slope
from rnnjit.ir.torch_evaluator import evaluate_tensors
from rnnjit.reference import layer_forward_states

H, I, B, T = 5, 3, 4, 6


def leaky(zx, zh, v, a, noise):
    v = (1.0 - a) * v + a * (zx[0] + zh[0]) + noise
    return relu(v), v


def other_output(zx, zh, h, c):
    c = sigmoid(zx[0] + zh[0]) * c + tanh(zx[1])
    return tanh(c) * zh[1], tanh(c), c


def second_state(zx, zh, h, c):
    h = tanh(zx[0] + zh[0] + 0.5 * h + c)
    return h, h, 0.9 * c + h


def spec(function, states, gates=("z",), parameters=(), operand=None, row_inputs=()):
    return CellSpec.trace(
        function,
        name="mine",
        gates=gates,
        states=states,
        parameters=parameters,
        operand=operand,
        row_inputs=row_inputs,
    )


CELLS = {
    "operand is the output": spec(
        leaky, ["v"], parameters=["a"], operand=lambda v, a: relu(v), row_inputs=["noise"]
    ),
    "operand of its own": spec(
        leaky, ["v"], parameters=["a"], operand=lambda v, a: tanh(v * a), row_inputs=["noise"]
    ),
    "operand is the state": spec(leaky, ["v"], parameters=["a"], row_inputs=["noise"]),
    "output is no state": spec(other_output, ["h", "c"], gates="fg"),
    "operand is the second state": spec(second_state, ["h", "c"], operand=lambda h, c: c),
    "both of their own": spec(
        other_output, ["h", "c"], gates="fg", operand=lambda h, c: sigmoid(h + c)
    ),
}
FORMS = {
    "operand is the output": (("operand_", "v"), (1,), 0),
    "operand of its own": (("operand_", "v", "output_"), (1,), 2),
    "operand is the state": (("v", "output_"), (0,), 1),
    "output is no state": (("h", "c", "output_"), (0, 1), 2),
    "operand is the second state": (("c", "h"), (1, 0), 1),
    "both of their own": (("operand_", "h", "c", "output_"), (1, 2), 3),
}


@pytest.mark.parametrize("cell", [RNN_TANH, LSTM, GRU])
def test_torchs_cells_are_in_normal_form(cell):
    assert normal_form(cell).cell is cell
    assert normal_form(cell).initial is None


@pytest.mark.parametrize("name", CELLS)
def test_the_form_has_an_operand_and_an_output_that_are_its_first_state(name):
    form = normal_form(CELLS[name])
    assert form.cell.operand is None
    assert form.cell.out_state == 0
    assert (form.cell.states, form.states, form.output) == FORMS[name]
    assert normal_form(form.cell).cell is form.cell


@pytest.mark.parametrize(("name", "D"), in_turn(CELLS, [1, 2]))
def test_it_computes_what_the_cell_computes(name, D):
    cell, form = CELLS[name], normal_form(CELLS[name])
    generator = torch.Generator().manual_seed(0)
    layer, normal = (LayerSpec(each, I, H, D, True) for each in (cell, form.cell))
    rows = Rows(T, B, T * B)

    def random(*shape):
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        return tensor.requires_grad_()

    x, weights = random(T * B, layer.features), [random(*s) for s in layer.weight_shapes * D]
    hx = tuple(random(D, B, H) for _ in cell.states)
    y, h_n, _, _ = layer_forward_states(layer, rows, x, hx, weights)
    count = layer.weights_per_direction
    first = count - len(cell.parameters)
    own = [weights[d * count + first : (d + 1) * count] for d in range(D)]
    parameters = zip(*own, strict=True)
    given = [*hx, *(torch.stack(each)[:, None] for each in parameters)]
    initial = hx if form.initial is None else evaluate_tensors(form.initial, given)
    expanded = tuple(each.expand(D, B, H) for each in initial)
    own_y, own_h_n, _, states = layer_forward_states(normal, rows, x, expanded, weights)
    found = [(own_y, *states)[form.output], *(own_h_n[k] for k in form.states)]
    for ours, theirs in zip(found, [y, *h_n], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves, seeds = [x, *hx, *weights], [torch.randn_like(each) for each in found]
    ours = torch.autograd.grad(found, leaves, seeds, allow_unused=True)
    theirs = torch.autograd.grad([y, *h_n], leaves, seeds, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        pair = [torch.zeros(()) if each is None else each for each in (one, other)]
        torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-11)


def test_the_reference_computes_row_inputs_and_no_product():
    """A leaky integrator of noise, in closed form: v_t = 0.5 v_{t-1} + noise_t."""

    def integrate(zx, zh, v, noise):
        v = 0.5 * v + noise
        return v, v

    cell = spec(integrate, ["v"], row_inputs=["noise"])
    assert not cell.has_product
    layer = LayerSpec(cell, 0, H, 2, False)
    assert layer.features == 2 * H
    assert layer.weight_shapes == (torch.Size((H, 0)), torch.Size((H, 0)))
    x = torch.randn(T * B, 2 * H, dtype=torch.float64)
    weights = [torch.zeros(H, 0, dtype=torch.float64)] * 4
    hx = (torch.zeros(2, B, H, dtype=torch.float64),)
    y = layer_forward_states(layer, Rows(T, B, T * B), x, hx, weights).y.view(T, B, 2, H)
    noise = x.view(T, B, 2, H)
    decay = 0.5 ** (torch.arange(T)[:, None] - torch.arange(T)).double().clamp(min=0)
    lower = decay.tril()
    torch.testing.assert_close(y[:, :, 0], torch.einsum("ts,sbh->tbh", lower, noise[:, :, 0]))
    torch.testing.assert_close(y[:, :, 1], torch.einsum("ts,sbh->tbh", lower.T, noise[:, :, 1]))


def test_only_the_gates_of_the_product_make_one():
    """A state may have a name that begins as theirs do."""
    cell = spec(lambda zx, zh, s: (tanh(zx[0] + s),) * 2, ["zh_7"])
    assert not cell.has_product
    assert [each.name for each in cell.accumulators] == ["zx_0"]
    assert all(each.is_built_in for each in (RNN_TANH, LSTM, GRU))
    assert not cell.is_built_in


def test_the_text_of_a_cell_keeps_its_row_inputs():
    cell = CELLS["operand of its own"]
    again = CellSpec.parse(cell.text)
    assert again == cell
    assert again.row_inputs == ("noise",)
    assert "row_inputs" not in LSTM.text


class Heaviside(torch.autograd.Function):
    """A spike whose gradient is that of a fast sigmoid: 1 / (1 + |x|)^2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs()) ** 2


def spike(x):
    slope = 1.0 / ((1.0 + abs(x)) * (1.0 + abs(x)))
    return with_slope(detach(where(x > 0, 1.0, 0.0)), x, slope)


def test_with_slope_gives_a_spike_the_gradient_of_its_surrogate():
    program = trace(spike, ["x"])
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5, float("nan"), float("inf")], requires_grad=True)
    grad = torch.randn(6)
    y = Heaviside.apply(x)
    (expected,) = torch.autograd.grad(y, x, grad)
    (found,) = evaluate_tensors(program, [x])
    (by_autograd,) = torch.autograd.grad(found, x, grad)
    (derived,) = evaluate_tensors(derivative(program, ["grad"]), [x.detach(), grad])
    torch.testing.assert_close(found, y, equal_nan=True)
    for each in (by_autograd, derived):
        torch.testing.assert_close(each, expected, equal_nan=True)
