"""Protects what tracing a cell gives: the values and gradients of the user's own loop."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced_loops import assert_backward_program, assert_equals_loop

from rnnjit.cells import Cell, trace_cell
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec

I, H = 3, 4


class Rich(Cell):
    """Its step is one of those below; it has parameters, buffers and attributes of many kinds."""

    def __init__(self, input_size=I, hidden_size=H, gates=1, states=("h",), bias=True):
        super().__init__(input_size, hidden_size, gates, states, bias, dtype=torch.float64)
        generator = torch.Generator().manual_seed(5)

        def random(*shape):
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        self.a = nn.Parameter(random(hidden_size))
        self.b = nn.Parameter(random(2 * hidden_size))
        self.p = nn.Parameter(random(3, hidden_size))
        self.scalar = nn.Parameter(random())
        self.m, self.n = (nn.Parameter(random(hidden_size, 2)) for _ in "mn")
        self.skip = nn.Parameter(random(hidden_size, input_size))
        self.register_buffer("sign", torch.sign(random(hidden_size) - 0.5))
        self.register_buffer("mask", random(hidden_size) > 0.5)
        self.norm = nn.LayerNorm(hidden_size, dtype=torch.float64)
        self.both = nn.Linear(input_size + hidden_size, 2 * hidden_size, dtype=torch.float64)
        self.leak, self.sigma, self.act = 0.2, 0.1, torch.tanh


class Spike(torch.autograd.Function):
    """A step function with the gradient of a fast sigmoid."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + ctx.slope * x.abs()) ** 2, None


class Triangle(torch.autograd.Function):
    """A step function with a triangle as its gradient, in the newer style of functions."""

    @staticmethod
    def forward(x):
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return torch.where(x.abs() < 1, grad * (1 - x.abs()), 0.0) + 0.1 * grad * y


class Scaled(torch.autograd.Function):
    """The product of a state and a parameter, with gradients of its own for both."""

    @staticmethod
    def forward(ctx, x, a):
        ctx.save_for_backward(x, a)
        return x.clone() * a

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, a = ctx.saved_tensors
        return -grad * a * 0.5, torch.where(x > 0, grad * x, 0.0)


def leaky(self, x, v):
    noise = self.sigma * torch.randn_like(v) if self.training else 0.0
    v = (1 - self.a) * v + self.a * (self.ih(x) + self.hh(torch.relu(v))) + noise
    return torch.relu(v), v


def peephole(self, x, h, c):
    i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
    c = torch.sigmoid(f + self.p[1] * c) * c + torch.sigmoid(i + self.p[0] * c) * torch.tanh(g)
    return torch.sigmoid(o + self.p[2] * c) * torch.tanh(c), c


def low_rank(self, x, h):
    return torch.tanh(self.ih(x) + F.linear(h, self.m @ self.n.T, self.a))


def dale(self, x, h):
    return torch.relu(self.ih(x) + h @ (self.weight_hh.abs() * self.sign).T + self.bias_hh)


def independent(self, x, h):
    return torch.relu(self.ih(x) + self.a * h)


def norm_of_x(self, x, h):
    return torch.tanh(self.norm(self.ih(x)) + self.hh(h))


def gates_by_view(self, x, h):
    z, n = (self.ih(x) + self.hh(h)).view(-1, 2, self.hidden_size).unbind(1)
    z = z.sigmoid()
    return (1 - z) * n.tanh() + z * h


def gates_by_slices(self, x, h):
    z = self.ih(x) + self.hh(h)
    f, n = z[:, : self.hidden_size], z[..., self.hidden_size :]
    f, n = torch.stack([n, f], 1).flatten(1).unflatten(-1, (2, -1)).permute(1, 0, 2)
    return torch.tanh(f) * n.contiguous()


def time_span(self, x, h):
    x, t = x[:, :2], x[:, 2:]
    decay = torch.exp(-F.softplus(t) * F.softplus(self.a))
    return torch.tanh(self.ih(torch.cat([x, t], 1)) + self.hh(h * self.a)) * decay + h * (1 - decay)


def in_place(self, x, h):
    z = self.ih(x)
    z += self.hh(h)
    z = z.mul(self.b[:H]).add_(self.scalar)
    return torch.tanh(z)


def drops(self, x, h):
    z = self.ih(F.dropout(x, 0.3, self.training))
    noise = torch.empty_like(h).uniform_(-1, 1) + torch.randn(len(x), 1, dtype=h.dtype)
    return torch.tanh(z + F.dropout(self.hh(h), 0.4, self.training) + 0.1 * noise)


def masks(self, x, h):
    held = (h > 0) & (h < 1) | ~(h < 2)
    z = torch.where(held, self.ih(x), self.hh(h)).masked_fill(h > 1, 0.5)
    z = torch.where(self.mask, z, -z) + torch.where(x[:, :1] > 0, h, 0.0)
    return z * held.float() + (h > 0.1).to(h.dtype) * h


def without_gradients(self, x, h):
    with torch.no_grad():
        g = torch.sigmoid(self.hh(h) * self.a)
        k = self.ih(x)
    return g * torch.tanh(self.ih(x)) + h.detach() * self.a + k + self.b.detach()[:H]


def no_product(self, x, v):
    return 0.9 * v + self.a * x[:, :1]


def results_of_all_kinds(self, x, h, c):
    return torch.zeros_like(h) + torch.tanh(self.hh(h)), torch.ones_like(c) * self.a, c


def output_of_x(self, x, h):
    return torch.tanh(self.ih(x)), torch.tanh(self.ih(x) + self.hh(h))


def two_maps_of_one_operand(self, x, h):
    z = torch.tanh(F.linear(x, self.weight_ih) + F.linear(h, self.weight_hh * 2))
    return z * F.linear(h, self.weight_hh)


def the_same_map_twice(self, x, h):
    return torch.tanh(self.ih(x) + self.hh(h)) * torch.sigmoid(self.ih(x) - self.hh(h))


def blocks_beside_each_other(self, x, h):
    z = torch.cat([self.ih(x) + self.hh(h), self.a * h, torch.ones_like(h)], -1)
    a, b, c = (z * torch.cat([self.a, self.b])).chunk(3, -1)
    return torch.tanh(a + b) * c


def transposed_product(self, x, h):
    return torch.tanh(self.ih(x) + (self.weight_hh @ h.T).T)


def glu(self, x, h):
    return F.glu(self.ih(x) + self.hh(h), -1)


def skip_connection(self, x, h):
    return torch.tanh(self.ih(x) + self.hh(h)) + x @ self.skip.T * self.a


def second_state(self, x, h, c):
    return h, (torch.tanh(self.ih(x) + self.hh(c)), h * c)


def product_of_both(self, x, h):
    f, n = self.both(torch.cat([x, h], 1)).chunk(2, 1)
    return self.act(n) * torch.sigmoid(f) + self.leak * h


def product_of_both_reversed(self, x, h):
    f, n = self.both(torch.cat([h, x], 1)).chunk(2, 1)
    return self.act(n) * torch.sigmoid(f) + self.leak * h


def spiking(self, x, s, v):
    v = torch.sigmoid(self.a) * v * (1 - s.detach()) + self.ih(x) + self.hh(s)
    s = Spike.apply(v - 0.5, 10.0)
    return s, v


def triangle(self, x, s, v):
    v = self.leak * v + self.ih(x) + self.hh(s)
    return Triangle.apply(v - self.a), v


def function_of_two(self, x, h):
    return torch.tanh(self.ih(x) + self.hh(h)) + Scaled.apply(self.hh(h), self.a.expand_as(h))


def function_of_wide_blocks(self, x, h):
    return Scaled.apply(self.hh(h) + self.ih(x), self.ih(x))[:, :H] * h


def one_bias(self, x, h):
    return torch.tanh(F.linear(x, self.weight_ih) + self.hh(h))


def scalars(self, x, h):
    return torch.tanh(self.scalar * self.hh(h) + self.ih(x)) ** 2 * self.p[0, 1] + self.p.sum()


STEPS = {
    leaky: {"states": ("v",)},
    peephole: {"gates": 4, "states": ("h", "c")},
    low_rank: {"bias": False},
    gates_by_view: {"gates": 2},
    gates_by_slices: {"gates": 2},
    results_of_all_kinds: {"states": ("h", "c")},
    glu: {"gates": 2},
    second_state: {"states": ("h", "c")},
    spiking: {"states": ("s", "v")},
    triangle: {"states": ("s", "v")},
    function_of_wide_blocks: {"gates": 2},
    no_product: {"states": ("p0",)},
    **{
        step: {}
        for step in (
            *(dale, independent, norm_of_x, time_span, in_place, drops, masks, one_bias, scalars),
            *(without_gradients, output_of_x, two_maps_of_one_operand, the_same_map_twice),
            *(blocks_beside_each_other, transposed_product, skip_connection, product_of_both),
            *(product_of_both_reversed, function_of_two),
        )
    },
}
#: Whether a backend multiplies x by w_ih, and how many row inputs there are.
PARTS = {
    leaky: (I, 1),
    peephole: (I, 0),
    independent: (I, 0),
    norm_of_x: (0, 1),
    no_product: (0, 1),
    skip_connection: (I, 1),
    two_maps_of_one_operand: (0, 1),
    the_same_map_twice: (I, 0),
    product_of_both: (I, 0),
    spiking: (I, 0),
}


def cell_of(step, **kinds):
    torch.manual_seed(3)
    return type("Mine", (Rich,), {"forward": step})(**{**STEPS.get(step, {}), **kinds})


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_traced_cell_is_the_users_loop(step):
    cell = cell_of(step)
    assert_equals_loop(cell)
    traced = trace_cell(cell)
    assert_backward_program(traced.spec)
    assert CellSpec.parse(traced.spec.text) == traced.spec
    assert PARTS.get(step) in (None, (traced.input_size, len(traced.spec.row_inputs)))


@pytest.mark.parametrize("step", [leaky, drops], ids=lambda step: step.__name__)
def test_in_eval_mode_it_draws_nothing_that_the_step_does_not_draw(step):
    cell = cell_of(step)
    assert trace_cell(cell).draws
    assert_equals_loop(cell.eval())
    assert len(trace_cell(cell).draws) == {leaky: 0, drops: 2}[step]


def test_one_hidden_unit_and_one_feature():
    for step in (leaky, peephole, gates_by_view, product_of_both, blocks_beside_each_other):
        if step is not blocks_beside_each_other:
            assert_equals_loop(cell_of(step, input_size=1, hidden_size=1))
        assert_equals_loop(cell_of(step, input_size=H, hidden_size=H))


@pytest.mark.parametrize(
    "step", [leaky, peephole, masks, spiking, triangle, product_of_both], ids=lambda s: s.__name__
)
def test_nan_infinities_and_kinks_as_the_loop_has_them(step):
    values = (-torch.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, torch.inf, torch.nan)
    assert_equals_loop(cell_of(step), T=2, B=40, values=values)
    assert_equals_loop(cell_of(step), T=2, B=40, values=values[1:-2])


@pytest.mark.parametrize("states", [("out", "zx_0"), ("grad_h", "operand_"), ("r0", "p1")])
def test_states_may_have_the_names_that_programs_use(states):
    assert_equals_loop(cell_of(peephole, states=states))


class Inside(nn.Module):
    """Layers of torch inside of a cell: tables, lists, norms, and weights that are computed."""

    def __init__(self):
        super().__init__()
        self.input_size, self.hidden_size, self.states = I, H, ("h",)
        self.table = nn.Embedding(4, H, dtype=torch.float64)
        self.maps = nn.ModuleList(nn.Linear(k, H, dtype=torch.float64) for k in (I, H))
        self.list = nn.ParameterList([torch.rand(H, dtype=torch.float64)])
        nn.utils.parametrizations.weight_norm(self.maps[1])
        self.norm = nn.BatchNorm1d(H, dtype=torch.float64).eval()
        self.front = nn.Sequential(nn.Linear(I, 5, dtype=torch.float64), nn.GELU())
        self.back = nn.Linear(5, H, bias=False, dtype=torch.float64)

    def forward(self, x, h):
        z = self.norm(self.maps[0](x)) + self.table((x[:, 0].abs() > 0.5).long())
        z = z + self.back(self.front(x)) * torch.softmax(x, -1)[:, :1]
        return torch.tanh(z + self.maps[1](h)) * self.list[0]


def test_layers_of_torch_inside_of_a_cell():
    torch.manual_seed(0)
    cell = Inside()
    assert_equals_loop(cell)
    assert len(trace_cell(cell).spec.row_inputs) == 1


def lstm(self, x, h, c):
    i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_otherwise(self, x, h, c):
    zx, zh = self.ih(x).view(-1, 4, H), self.hh(h).view(-1, 4, H)
    i, f, o = (zh[:, [0, 1, 3][k]] + zx[:, [0, 1, 3][k]] for k in range(3))
    c = f.sigmoid().mul(c).add(i.sigmoid() * (zx + zh).select(1, 2).tanh())
    h = o.sigmoid() * c.tanh()
    return h, (h, c)


def gru(self, x, h):
    (rx, zx, nx), (rh, zh, nh) = self.ih(x).chunk(3, -1), self.hh(h).chunk(3, -1)
    r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
    n = torch.tanh(nx + r * nh)
    return (h - n) * z + n


@pytest.mark.parametrize(
    ("step", "gates", "states", "cell"),
    [
        (lambda self, x, h: torch.tanh(self.ih(x) + self.hh(h)), 1, ("h",), RNN_TANH),
        (lambda self, x, h: self.hh(h).add(self.ih(x)).relu(), 1, ("state",), RNN_RELU),
        (lstm, 4, ("h", "c"), LSTM),
        (lstm_otherwise, 4, ("a", "b"), LSTM),
        (gru, 3, ("h",), GRU),
    ],
    ids=["tanh", "relu", "lstm", "lstm otherwise", "gru"],
)
def test_torchs_cells_written_again_are_the_built_in_ones(step, gates, states, cell):
    mine = cell_of(step, gates=gates, states=states)
    traced = trace_cell(mine)
    assert traced.spec.digest == cell.digest
    assert (traced.input_size, traced.bias) == (I, True)
    own = (mine.weight_ih, mine.weight_hh, mine.bias_ih, mine.bias_hh)
    weights = traced.weights(mine)
    assert len(weights) == 4
    assert all(one is other for one, other in zip(weights, own, strict=True))
    assert_equals_loop(mine)


def test_weights_follow_the_parameters_as_they_are():
    cell = cell_of(low_rank)
    traced = trace_cell(cell)
    before = traced.weights(cell)[1]
    with torch.no_grad():
        cell.m.mul_(2.0)
    torch.testing.assert_close(traced.weights(cell)[1], 2 * before)
    other = cell_of(low_rank)
    other.m = nn.Parameter(torch.zeros(H, 2, dtype=torch.float64))
    assert not traced.weights(other)[1].any()


def test_it_is_traced_once_for_what_the_cell_is():
    cell = cell_of(leaky)
    first = trace_cell(cell)
    assert trace_cell(cell) is first
    cell.sigma = 0.3
    changed = trace_cell(cell)
    assert changed is not first
    assert trace_cell(cell.eval()) is not changed
    cell.train().sigma = 0.1
    assert trace_cell(cell) is first
    assert trace_cell(cell_of(leaky)).spec == first.spec
    assert trace_cell(cell_of(leaky).float()).spec == first.spec


class Settings:
    leak = 0.5

    def __init__(self, leak):
        self.leak = leak


def of_settings(self, x, h):
    return self.act(self.ih(x) + self.hh(h)) + self.settings.leak * h


def test_it_is_traced_again_when_something_that_the_cell_holds_is_another():
    cell = cell_of(of_settings)
    cell.settings = Settings(0.5)
    first = trace_cell(cell)
    cell.settings.leak = 0.25
    changed = trace_cell(cell)
    cell.act = torch.sigmoid
    again = trace_cell(cell)
    assert len({each.spec.digest for each in (first, changed, again)}) == 3
    assert_equals_loop(cell)


def test_a_trace_keeps_neither_the_cell_nor_its_parameters():
    cell = cell_of(low_rank)
    traced = trace_cell(cell)
    refs = [weakref.ref(cell), weakref.ref(cell.m), weakref.ref(cell.weight_ih)]
    del cell
    gc.collect()
    assert traced.spec
    assert [each() for each in refs] == [None] * 3


def test_tracing_draws_no_random_numbers_and_leaves_gradients_alone():
    cell = cell_of(drops)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with torch.no_grad():
        trace_cell(cell)
    assert torch.equal(torch.rand(3), expected)
    assert all(each.grad is None for each in cell.parameters())


def test_what_is_not_trained_has_no_gradient():
    cell = cell_of(low_rank)
    cell.m.requires_grad_(False)
    assert_equals_loop(cell)


class Plain(nn.Module):
    """A module of a user's own, with a step that is not `forward`."""

    def __init__(self):
        super().__init__()
        self.input_size, self.hidden_size = I, H
        self.linear = nn.Linear(I + H, H, dtype=torch.float64)

    def recurrence(self, x, hidden):
        return torch.tanh(self.linear(torch.cat((x, hidden), dim=-1)))


def test_another_module_with_a_method_that_is_a_step():
    given = {"input_size": I, "hidden_size": H, "states": ("hidden",)}
    assert_equals_loop(Plain(), step="recurrence", **given)
    traced = trace_cell(Plain(), "recurrence")
    assert traced.spec == RNN_TANH
    with pytest.raises(TypeError, match="Plain: expected a method step"):
        trace_cell(Plain(), "step")
    with pytest.raises(TypeError, match="Linear: expected an integer input_size, got None"):
        trace_cell(nn.Linear(1, 1))
