"""Protects the cells of the gallery: one step of each, against the same step written by hand."""

import pytest
import torch
from gallery_cells import GALLERY

from rnnjit import cells

I, H, B = 3, 5, 4
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def named(cell):
    """The tensors of a cell by name."""
    return {**dict(cell.named_parameters()), **dict(cell.named_buffers())}


def outcome(run, inputs):
    """The results, and the gradients of all inputs that are learnt."""
    results = run()
    results = results if isinstance(results, tuple) else (results,)
    loss = sum((result.sin() * result).sum() for result in results)
    return [*results, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_step_and_its_gradients(name, training):
    entry = GALLERY[name]
    torch.manual_seed(3)
    cell = entry.new(I, H).train(training)
    x = torch.randn(B, I, dtype=torch.float64, requires_grad=True)
    states = [torch.randn_like(x[:, :1].expand(B, H)).requires_grad_() for _ in cell.states]
    inputs = [x, *states, *cell.parameters()]

    torch.manual_seed(4)
    found = outcome(lambda: cell(x, *states), inputs)
    torch.manual_seed(4)
    noise = torch.randn(B, H, dtype=torch.float64)

    def hand():
        rows = []
        for b in range(B):
            xi = (noise[b],) if entry.noisy and training else ()
            out, new = entry.step(named(cell), x[b], *(state[b] for state in states), *xi)
            rows.append(new if len(found) == len(new) + len(inputs) else (out, *new))
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    expected = outcome(hand, inputs)
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, **CLOSE)


@pytest.mark.parametrize("name", cells.gallery.__all__)
def test_every_cell_of_the_gallery_has_a_step_by_hand(name):
    assert any(entry.cls is getattr(cells, name) for entry in GALLERY.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cells.LeakyRNN(2, 3, nonlinearity="exp"), "nonlinearity: expected one of 'relu'"),
        (lambda: cells.DaleRNN(2, 3, nonlinearity="tanh"), "expected rates of 0 or more"),
        (lambda: cells.DaleRNN(2, 3, excitatory=1.5), "expected a share from 0 to 1, got 1.5"),
        (lambda: cells.LIF(2, 3, surrogate="step"), "surrogate: expected one of 'fast_sigmoid'"),
    ],
)
def test_options_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dale_neurons_keep_their_signs():
    cell = cells.DaleRNN(2, 10, excitatory=0.7)
    weight = torch.autograd.functional.jacobian(cell.recurrent, torch.zeros(10))
    assert (weight[:, :7] >= 0).all()
    assert (weight[:, 7:] <= 0).all()


def test_the_low_rank_is_the_rank():
    cell = cells.LowRankRNN(2, 10, rank=3, dtype=torch.float64)
    weight = torch.autograd.functional.jacobian(cell.recurrent, torch.zeros(10).double())
    assert torch.linalg.matrix_rank(weight) == 3


def test_noise_is_drawn_in_training_alone():
    cell = cells.LeakyRNN(2, 3, sigma=0.5)
    x, v = torch.zeros(4, 2), torch.zeros(4, 3)
    assert not cell(x, v)[1].equal(cell(x, v)[1])
    cell.eval()
    assert cell(x, v)[1].equal(cell(x, v)[1])
