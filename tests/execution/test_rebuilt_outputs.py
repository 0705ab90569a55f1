"""Protects gradients of layers whose output is not kept, but computed anew from a state."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit import cells
from rnnjit.cells import trace_cell
from rnnjit.codegen.forward_call import saved_sizes
from rnnjit.frontend.recurrent_plan import layer_plan

T, B, I, H = 6, 3, 4, 5


def kept_elements(module, x):
    """Elements of memory that a recorded call keeps, beside x and what it returns."""
    found = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y, h_n = module(x)
    for held in (x, y, h_n):
        found.pop(held.untyped_storage().data_ptr(), None)
    assert y.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("name", ["LeakyRNN", "DaleRNN"])
def test_a_rate_network_keeps_two_numbers_for_each_step_and_unit(name):
    fast = rnnjit.compile(rnnjit.Recurrent(getattr(cells, name)(I, H)), backend="numba")
    few, many = (kept_elements(fast, torch.randn(steps, B, I)) for steps in (T, 3 * T))
    # One gate and one state; the weights do not grow with the steps.
    assert many - few == 2 * (2 * T) * B * H


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwritten"])
def test_gradients_are_those_of_the_loop_in_float64(packed, overwrite):
    torch.manual_seed(0)
    rnn = rnnjit.Recurrent(cells.LeakyRNN(I, H), num_layers=2, bidirectional=True)
    exact = rnnjit.Recurrent(
        cells.LeakyRNN(I, H, dtype=torch.float64), num_layers=2, bidirectional=True
    )
    exact.load_state_dict(rnn.state_dict())
    x, weigh = torch.randn(T, B, I), torch.randn(T, B, 2 * H)
    found = []
    for module in (rnnjit.compile(rnn, backend="numba"), exact):
        dtype = next(module.parameters()).dtype
        given = x.to(dtype, copy=True).requires_grad_()
        lengths = [T, T - 2, 1]
        y, h_n = module(pack_padded_sequence(given, lengths) if packed else given)
        rows = y.data if packed else y
        loss = rows * weigh.to(dtype).reshape(-1, 2 * H)[: rows.numel() // (2 * H)].view_as(rows)
        loss = loss.sum() + h_n.sin().sum()
        if overwrite and module is not exact:
            rows.data.fill_(7.0)
        found.append(torch.autograd.grad(loss, [given, *module.parameters()]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_rebuilt_output_has_the_bits_of_the_kernels():
    backend, cell = rnnjit.backends()["numba"], cells.LeakyRNN(I, H)
    layer = layer_plan(H, (trace_cell(cell),)).spec.layer(0)
    assert backend.rebuilds_output(layer)
    x = torch.randn(T, B, I)
    x[0, 0], x[1, 0], x[2, 1], x[3, 2] = float("nan"), float("inf"), -float("inf"), 0.0
    hx = (torch.zeros(1, B, H), torch.full((1, B, H), -0.0))
    weights = [w.detach() for w in trace_cell(cell).weights(cell)]
    rows = rnnjit.Rows(T, B, T * B)
    output = backend.forward(layer, rows, x.reshape(T * B, I), hx, weights, True)
    assert [each.shape[1] for each in output.saved] == list(saved_sizes(layer))
    again = backend.rebuilt_output(layer, output.saved, output.y.dtype)
    assert again.isnan().any()
    assert again.isinf().any()
    torch.testing.assert_close(again, output.y, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again.signbit()[~again.isnan()], output.y.signbit()[~again.isnan()])


class Shorter(type(rnnjit.backends()["numba"])):
    """It rebuilds an output without its last row."""

    name = "shorter"

    def rebuilt_output(self, layer, saved, dtype):
        return super().rebuilt_output(layer, saved, dtype)[:-1]


def test_a_rebuilt_output_of_another_shape_is_named():
    rnn = rnnjit.Recurrent(cells.LeakyRNN(I, H))
    y, _ = rnnjit.compile(rnn, backend=Shorter())(torch.randn(T, B, I))
    with pytest.raises(rnnjit.BackendError, match=r"rebuilt_output.*\[18, 5\].*\[17, 5\]"):
        y.sum().backward()


def test_an_output_of_bfloat16_is_rounded_as_the_kernels_do():
    backend, cell = rnnjit.backends()["numba"], cells.LeakyRNN(I, H, dtype=torch.bfloat16)
    layer = layer_plan(H, (trace_cell(cell),)).spec.layer(0)
    hx = tuple([torch.zeros(1, B, H, dtype=torch.bfloat16) for _ in range(2)])
    weights = [w.detach() for w in trace_cell(cell).weights(cell)]
    x, rows = torch.randn(T * B, I).bfloat16(), rnnjit.Rows(T, B, T * B)
    output = backend.forward(layer, rows, x, hx, weights, True)
    assert torch.equal(backend.rebuilt_output(layer, output.saved, torch.bfloat16), output.y)
