"""Protects the cells of further layers and directions: constructed as the first, for another I."""

import pytest
import torch

import rnnjit


class Plain(rnnjit.Cell):
    """Without a constructor of its own."""

    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h))


class Scaled(rnnjit.Cell):
    def __init__(self, hidden_size, input_size, scale=1.0):
        super().__init__(input_size, hidden_size)
        self.scale = scale

    def forward(self, x, h):
        return torch.tanh(self.scale * self.ih(x) + self.hh(h))


class Lost(rnnjit.Cell):
    """Its constructor does not say which argument is the input size."""

    def __init__(self, *sizes):
        super().__init__(*sizes)


@pytest.mark.parametrize(
    "cell",
    [
        Plain(3, 5, bias=False),
        Plain(input_size=3, hidden_size=5, bias=False),
        Scaled(5, 3, scale=2.0),
        Scaled(hidden_size=5, input_size=3, scale=2.0),
    ],
    ids=["positions", "names", "own-positions", "own-names"],
)
def test_all_but_the_input_size_stays(cell):
    made = cell.resized(8)
    assert type(made) is type(cell)
    assert (made.input_size, made.hidden_size) == (8, 5)
    assert made.bias == cell.bias
    assert getattr(made, "scale", None) == getattr(cell, "scale", None)
    assert made.weight_ih.shape == (5, 8)
    y, _ = rnnjit.Recurrent(cell, num_layers=2, bidirectional=True)(torch.zeros(2, 4, 3))
    assert y.shape == (2, 4, 10)


def test_a_constructor_without_the_input_size_is_refused():
    with pytest.raises(TypeError, match="Lost: expected a constructor with an argument input_size"):
        Lost(3, 5).resized(8)
