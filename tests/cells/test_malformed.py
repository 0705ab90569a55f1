"""Protects the errors of cells that are not compiled: operation, line, reason and remedy."""

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnnjit.cells import Cell, trace_cell
from rnnjit.errors import CellError

OUTSIDE = torch.ones(5)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod  # HERE
    def backward(ctx, grad):
        return grad * grad


class Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad - grad.mean(0)  # HERE


class Two(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone(), 2 * x

    @staticmethod
    def backward(ctx, grad, other):
        return grad + other


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return torch.sign(w)

    @staticmethod
    def backward(ctx, grad):
        return grad


def branch_on_a_state(self, x, h):
    z = self.ih(x) + self.hh(h)
    if z[0, 0] > 0:  # HERE
        return z
    return -z


def branch_on_x(self, x, h):
    if x.sum() > 0:  # HERE
        return self.hh(h)
    return self.ih(x)


def branch_on_a_parameter(self, x, h):
    return self.hh(h) if self.alpha[0] > 0 else self.ih(x)  # HERE


def item(self, x, h):
    return h * self.alpha.mean().item() + self.ih(x)  # HERE


def float_of_a_state(self, x, h):
    return h * float(x[0, 0]) + self.ih(x)  # HERE


def in_place(self, x, h):
    h += self.ih(x)  # HERE
    return h


def in_place_on_a_part(self, x, h):
    h = self.hh(h)
    h[:, :2] = 0  # HERE
    return h + self.ih(x)


def in_place_through_a_view(self, x, h):
    z = self.hh(h)
    z[:, :5].add_(1.0)
    return torch.tanh(z)  # HERE


def in_place_on_a_view_of_a_state(self, x, h):
    h.view(-1, 1, 5).mul_(0.5)  # HERE
    return h + self.ih(x)


def in_place_on_a_parameter(self, x, h):
    self.alpha.data.mul_(0.9)  # HERE
    return h + self.ih(x) * self.alpha


def in_place_on_a_buffer(self, x, h):
    self.steps.add_(1)  # HERE
    return h + self.ih(x)


def out_argument(self, x, h):
    z = self.hh(h)
    torch.add(z, 1.0, out=h)  # HERE
    return z


def captured(self, x, h):
    return h * OUTSIDE + self.ih(x)  # HERE


def attribute_that_is_a_plain_tensor(self, x, h):
    return h * self.plain + self.ih(x)  # HERE


def readout(self, x, h):  # HERE
    h = torch.tanh(self.ih(x) + self.hh(h))
    return h[:, :2], h


def gates_not_split(self, x, h):  # HERE
    return torch.cat([self.ih(x) + self.hh(h), h], -1)


def states_as_a_tuple(self, x, h, c):  # HERE
    return h, c


def no_tensor(self, x, h):  # HERE
    return h, 0.0


def none(self, x, h):  # HERE
    return None


def three_results(self, x, h):  # HERE
    return h, self.ih(x), self.hh(h)


def cumsum(self, x, h):
    return torch.cumsum(self.hh(h), -1)  # HERE


def softmax(self, x, h):
    return torch.softmax(self.hh(h) + self.ih(x), dim=-1)  # HERE


def total(self, x, h):
    z = self.hh(h) + self.ih(x)
    return z / z.sum(-1, keepdim=True)  # HERE


def layer_norm(self, x, h):
    return torch.tanh(F.layer_norm(self.hh(h), (5,)))  # HERE


def maximum(self, x, h):
    return h - h.max()  # HERE


def two_products(self, x, h):
    z = self.hh(h)
    return torch.tanh(z) + F.linear(torch.relu(h), self.weight_hh)  # HERE


def two_stages(self, x, h):
    r = torch.sigmoid(self.ih(x) + self.hh(h))
    return torch.tanh(self.hh(r * h))  # HERE


def low_rank_in_two_steps(self, x, h):
    return torch.tanh(F.linear(F.linear(h, self.m.T), self.m) + self.ih(x))  # HERE


def product_of_states(self, x, h):
    return h @ (h.T @ h)  # HERE


def x_in_the_operand(self, x, h):
    return torch.tanh(self.hh(h * self.ih(x)))  # HERE


def draw_in_the_operand(self, x, h):
    return torch.tanh(self.ih(x) + self.hh(F.dropout(h, 0.5, True)))  # HERE


def weights_from_x(self, x, h):
    return torch.tanh(h @ (self.weight_hh * x[0, 0]))  # HERE


def batched_product(self, x, h):
    return torch.bmm(h[:, None], self.weight_hh.expand(h.shape[0], 5, 5))[:, 0]  # HERE


def einsum(self, x, h):
    return torch.tanh(self.ih(x) + torch.einsum("bh,gh->bg", h, self.weight_hh))  # HERE


def wide_operand(self, x, h):
    return torch.tanh(self.ih(x) + torch.cat([h, h], -1) @ self.wide)  # HERE


def scaled_product(self, x, h):
    return torch.addmm(self.bias_hh, h, self.weight_hh, beta=0.5)  # HERE


def mean_over_the_batch(self, x, h):
    z = self.hh(h)
    return z - z.mean(0)  # HERE


def first_row(self, x, h):
    return h - h[0]  # HERE


def other_row(self, x, h):
    return torch.tanh(h.flip(0) + self.ih(x))  # HERE


def reversed_units(self, x, h):
    return torch.tanh(h.flip(-1) + self.ih(x))  # HERE


def shifted_units(self, x, h):
    return torch.tanh(torch.roll(h, 1, -1) + self.ih(x))  # HERE


def transposed(self, x, h):
    return torch.tanh(h.T * self.ih(x).T[:, :1])  # HERE


def half_a_block(self, x, h):
    return torch.cat([torch.tanh(h[:, :2]), h[:, 2:]], -1) + self.ih(x)  # HERE


def with_x_beside(self, x, h):
    z = torch.cat([x, h], -1)
    return torch.relu(z)[:, 3:]  # HERE


def mean_of_x_over_the_batch(self, x, h):
    x = x - x.mean(0)
    return torch.tanh(self.hh(h) + torch.tanh(self.ih(x)))  # HERE


def batch_size_as_a_number(self, x, h):
    return torch.tanh(self.hh(h) / x.shape[0])  # HERE?


def batch_size_as_a_factor_of_x(self, x, h):
    return torch.tanh(self.hh(h) + torch.sin(x[:, :1] * x.shape[0]))  # HERE?


def integers(self, x, h):
    return (h > 0).long() * h  # HERE


def other_dtype(self, x, h):
    return h.double().float()  # HERE


def half_precision(self, x, h):
    return torch.tanh(h.half()).float()  # HERE


def complex_numbers(self, x, h):
    return torch.complex(h, h).real  # HERE


def boolean_result(self, x, h):  # HERE
    return h > 0


def double_result(self, x, h):  # HERE
    return self.hh(h), self.ih(x).double()


def sine(self, x, h):
    return torch.sin(self.hh(h) + self.ih(x))  # HERE


def error_function(self, x, h):
    return torch.erf(h) + self.ih(x)  # HERE


def exact_gelu(self, x, h):
    return F.gelu(self.hh(h) + self.ih(x))  # HERE


def odd_power(self, x, h):
    return h**2.5 + self.ih(x)  # HERE


def floor_division(self, x, h):
    return torch.div(h, 2, rounding_mode="floor") + self.ih(x)  # HERE


def remainder(self, x, h):
    return h % 1.0 + self.ih(x)  # HERE


def to_numpy(self, x, h):
    return torch.from_numpy(np.tanh(h.detach().numpy())) + self.ih(x)  # HERE


def numpy_function(self, x, h):
    return h * float(np.mean(x.detach())) + self.ih(x)  # HERE


def to_list(self, x, h):
    return h * sum(x[0].tolist()) + self.ih(x)  # HERE


def boolean_index(self, x, h):
    return h[h > 0].mean() + self.ih(x)  # HERE


def nonzero(self, x, h):
    return h * len(torch.nonzero(x)) + self.ih(x)  # HERE


def gradient_hook(self, x, h):
    z = self.hh(h)
    z.register_hook(lambda grad: grad.clamp(-1, 1))  # HERE
    return torch.tanh(z)


def two_results_of_a_function(self, x, h):
    one, other = Two.apply(self.hh(h))
    return one + other  # HERE


def not_linear_backward(self, x, h):
    return Square.apply(self.hh(h)) + self.ih(x)


def backward_over_rows(self, x, h):
    return Rows.apply(self.hh(h)) + self.ih(x)


def function_of_weights(self, x, h):
    return F.linear(h, Straight.apply(self.weight_hh)) + self.ih(x)  # HERE


def distribution_of_tensors(self, x, h):
    return h * torch.bernoulli(torch.sigmoid(self.alpha).expand_as(h))  # HERE


def draw_for_all_rows(self, x, h):
    return h + torch.randn(5) + self.ih(x)  # HERE


def keeps_a_state(self, x, h):  # HERE
    self.last = torch.tanh(h + self.ih(x))
    return self.last


def counts(self, x, h):  # HERE
    self.calls += 1
    return torch.tanh(h + self.ih(x)) * self.calls


def wrong_shape(self, x, h):
    return torch.tanh(h + x)  # HERE


def misspelt(self, x, h):
    return torch.tanh(h + self.input_map(x))  # HERE


#: For each step the operation that its error names, why, and what to do.
MALFORMED = {
    branch_on_a_state: ("Tensor.(__gt__|gt)", "row|value", "rows|torch.where"),
    branch_on_x: ("Tensor.__bool__", "reads the value", "torch.where"),
    branch_on_a_parameter: ("Tensor.__bool__", "reads the value", "torch.where"),
    item: ("Tensor.item", "reads the value", "Python number"),
    float_of_a_state: ("Tensor.__float__", "reads the value", "Python number"),
    in_place: ("Tensor.(__iadd__|add_)", "changes the state h in place", "v = v . a"),
    in_place_on_a_part: ("Tensor.__setitem__", "in place", "torch.cat|a new tensor"),
    in_place_through_a_view: ("torch.tanh", "through another one", "v = v . a"),
    in_place_on_a_view_of_a_state: ("Tensor.mul_", "changes the state h in place", "v = v . a"),
    in_place_on_a_parameter: ("Tensor.mul_", "in place", "new tensor|as a state"),
    in_place_on_a_buffer: ("Tensor.add_", "changes self.steps in place", "as a state"),
    out_argument: ("torch.add", "out=", "to see it fail"),
    captured: ("Tensor.(__mul__|mul)", "neither a parameter nor a buffer", "register_buffer"),
    attribute_that_is_a_plain_tensor: (
        "Tensor.(__mul__|mul)",
        "self.plain, which",
        "register_buffer",
    ),
    gates_not_split: ("the output", r"is \[B, 10\], and must be \[B, 5\]", "chunk"),
    states_as_a_tuple: (
        "the step",
        r"called with x and 1 states \(h\): missing .* 'c'",
        "other states",
    ),
    readout: ("the output", r"is \[B, 2\], and must be \[B, 5\]", "output of the layer"),
    no_tensor: ("the new state h", "float, not a tensor", "as tensors"),
    none: ("the output", "NoneType, not a tensor", "as tensors"),
    three_results: ("the step", "returns 3 tensors, and there are 1 states", "2 tensors"),
    cumsum: ("torch.cumsum", "mixes hidden units", "outside of the cell"),
    softmax: ("torch.softmax", "mixes hidden units", "outside of the cell"),
    total: ("Tensor.sum", "mixes hidden units", "outside of the cell"),
    layer_norm: ("torch.nn.functional.layer_norm", "mixes hidden units", "outside of the cell"),
    maximum: ("Tensor.max", "mixes hidden units", "outside of the cell"),
    two_products: ("linear", "another operand than the first", "one operand"),
    two_stages: ("linear", "one stage of products", "after the product"),
    low_rank_in_two_steps: ("linear", "no multiple of the 5", r"self.m @ self.n.T"),
    product_of_states: ("matmul", "two tensors that depend on states", "weight of parameters"),
    x_in_the_operand: ("linear", "with x in it", "add self.ih.*end of the step before"),
    draw_in_the_operand: ("linear", "random draw in it", "pointwise function"),
    weights_from_x: ("matmul", "weights that depend on x", "x act pointwise"),
    batched_product: ("torch.bmm", "product that compiled cells do not take", "F.linear"),
    einsum: ("torch.einsum", "product that compiled cells do not take", "F.linear"),
    wide_operand: ("matmul", "2 states at once", "one state"),
    scaled_product: ("torch.addmm", "alpha or beta", "after the product"),
    mean_over_the_batch: ("Tensor.mean", "mixes the rows", "outside of the cell"),
    first_row: ("Tensor.(__sub__|sub)", "rows are not the batch's", "single rows"),
    other_row: ("Tensor.(__add__|add)", "rows are not the batch's", "single rows"),
    reversed_units: ("Tensor.(__add__|add)", "hidden units are not in their places", "chunk"),
    shifted_units: ("Tensor.(__add__|add)", "hidden units are not in their places", "chunk"),
    transposed: ("Tensor.(__mul__|mul)", "not in their places|not the batch's", "chunk|batch"),
    half_a_block: ("torch.tanh", "hidden units are not in their places", "chunk"),
    with_x_beside: ("torch.relu", "beside a tensor", "linear map to each"),
    mean_of_x_over_the_batch: ("computed from x", "mixes rows", "each row alone"),
    batch_size_as_a_number: ("the step", "another batch size", "no number from the batch size"),
    batch_size_as_a_factor_of_x: ("the step", "another batch size", "no number from"),
    integers: ("Tensor.long", "torch.int64", "floating-point|dtype"),
    other_dtype: ("Tensor.double", "from torch.float32 to torch.float64", "Keep the dtype"),
    half_precision: ("Tensor.half", "from torch.float32 to torch.float16", "Keep the dtype"),
    complex_numbers: ("torch.complex", "do not have", "Write it with"),
    boolean_result: ("the output", "bool", "state.dtype"),
    double_result: ("the new state h", "torch.float64, and must be torch.float32", "state.dtype"),
    sine: ("torch.sin", "do not have", "Write it with"),
    error_function: ("torch.erf", "do not have", "tanh"),
    exact_gelu: ("torch.nn.functional.gelu|torch.gelu", "needs erf", "approximate='tanh'"),
    odd_power: ("__pow__|Tensor.pow", "exponent 2.5", "torch.exp"),
    floor_division: ("torch.div", "rounds", "without rounding"),
    remainder: ("Tensor.(__mod__|remainder)", "do not have", "Write it with"),
    to_numpy: ("Tensor.numpy", "out of torch", "torch's operators"),
    numpy_function: ("numpy", "out of torch", "torch's operators"),
    to_list: ("Tensor.(tolist|item)", "reads the value|out of torch", "Python number|torch's"),
    boolean_index: ("Tensor.__getitem__", "depends on values", "torch.where"),
    nonzero: ("torch.nonzero", "depends on values", "torch.where"),
    gradient_hook: ("Tensor.register_hook", "gradient of one step", "autograd.Function"),
    two_results_of_a_function: ("Two", "several results", "Function for each"),
    not_linear_backward: ("Square.backward", "something else than its gradient", "slope"),
    backward_over_rows: ("mean", "mixes the rows", "outside of the cell|slope"),
    function_of_weights: ("Straight", "of parameters, x or random draws alone", "detach"),
    distribution_of_tensors: ("torch.bernoulli", "parameters are tensors", "torch.rand_like"),
    draw_for_all_rows: ("torch.randn", "first dimension", "randn_like"),
    keeps_a_state: ("self.last", "set in the step", "as a state"),
    counts: ("self.calls", "set in the step", "as a state"),
    wrong_shape: ("Tensor.(__add__|add)", "raised RuntimeError", "to see it fail"),
    misspelt: ("the step", "raised AttributeError.*input_map", "to see it fail"),
}
ELSEWHERE = {not_linear_backward: Square.backward, backward_over_rows: Rows.backward}


class Malformed(Cell):
    def __init__(self):
        super().__init__(3, 5)
        self.alpha = nn.Parameter(torch.ones(5))
        self.m = nn.Parameter(torch.ones(5, 2))
        self.wide = nn.Parameter(torch.ones(10, 5))
        self.register_buffer("steps", torch.zeros(()))
        self.plain = torch.ones(5)
        self.calls = 0


def marked(function):
    """The line of a function that its mark stands on; None if any line will do."""
    lines, first = inspect.getsourcelines(function)
    found = [k for k, line in enumerate(lines, first) if line.rstrip().endswith("# HERE")]
    return found[0] if found else None


@pytest.mark.parametrize("step", MALFORMED, ids=lambda step: step.__name__)
def test_what_is_wrong_is_named(step):
    operation, why, remedy = MALFORMED[step]
    kind = type("Mine", (Malformed,), {"forward": step})
    with pytest.raises(CellError) as caught:
        trace_cell(kind())
    error = caught.value
    assert isinstance(error, TypeError)
    assert error.step == "Mine.forward"
    assert re.search(operation, error.operation)
    assert re.search(why, error.why)
    assert re.search(remedy, error.remedy)
    line = marked(ELSEWHERE.get(step, step))
    assert error.where == f"test_malformed.py:{line}" or line is None
    said = f"{error.operation} {error.why}. {error.remedy}."
    assert str(error) == f"Mine.forward, {error.where}: {said}"


def test_the_cell_is_left_as_it_was():
    kind = type("Mine", (Malformed,), {"forward": keeps_a_state})
    cell = kind()
    attributes = dict(vars(cell))
    with pytest.raises(CellError):
        trace_cell(cell)
    assert vars(cell) == attributes


@pytest.mark.parametrize("file", ["<stdin>", "<python-input-3>", "<ipython-input-3-ab>"])
def test_lines_that_were_typed_are_named(file):
    typed = "def forward(self, x, h):\n    return torch.cumsum(self.ih(x) + self.hh(h), -1)\n"
    names = {"torch": torch}
    exec(compile(typed, file, "exec"), names)
    mine = type("Mine", (Cell,), {"forward": names["forward"]})
    with pytest.raises(CellError, match=f"{file}:2: torch.cumsum mixes"):
        trace_cell(mine(3, 4))
