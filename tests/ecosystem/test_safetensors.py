"""Protects checkpoints in safetensors, from eager to compiled models and back."""

import pytest
import torch
from layer_kinds import each_kind, width
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.nn.utils import parametrizations

import rnnjit


class Model(nn.Module):
    def __init__(self, tied=False, make=nn.RNN):
        super().__init__()
        self.rnn = make(3, 4, 2, bidirectional=True)
        self.head = nn.Linear(2 * width(self.rnn), 2)
        if tied:
            self.rnn.weight_hh_l1 = self.rnn.weight_hh_l0

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.fixture
def x():
    return torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


# Torch's own layer warns of this.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@each_kind
def test_a_state_dict_there_and_back(tmp_path, x, make):
    file = tmp_path / "model.safetensors"
    fast = rnnjit.compile(Model(make=make))
    fast(x)
    save_file(fast.state_dict(), file)
    with safe_open(file, "pt") as stored:
        assert sorted(stored.keys()) == sorted(Model(make=make).state_dict())
    plain, again = Model(make=make), rnnjit.compile(Model(make=make))
    for model in (plain, again):
        assert str(model.load_state_dict(load_file(file))) == "<All keys matched successfully>"
    assert torch.equal(again(x), fast(x))
    torch.testing.assert_close(plain(x), fast(x))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved", ["eager", "compiled"])
def test_whole_models(tmp_path, x, tied, saved):
    """`save_model` writes a shared weight once, and `load_model` restores the sharing."""
    file = tmp_path / "model.safetensors"
    source = Model(tied)
    expected = source(x)
    save_model(source if saved == "eager" else rnnjit.compile(source), str(file))
    other = rnnjit.compile(Model(tied)) if saved == "eager" else Model(tied)
    assert load_model(other, file) == (set(), [])
    torch.testing.assert_close(other(x), expected)
    assert (other.rnn.weight_hh_l1 is other.rnn.weight_hh_l0) == tied


def test_loading_by_assignment_uses_the_files_own_memory(tmp_path, x):
    file = tmp_path / "model.safetensors"
    source = Model()
    save_file(source.state_dict(), file)
    with torch.device("meta"):
        fast = rnnjit.compile(Model())
    fast.load_state_dict(load_file(file), assign=True)
    torch.testing.assert_close(fast(x), source(x))
    fast(x).sum().backward()
    assert all(p.grad is not None for p in fast.parameters())


def test_parametrized_weights(tmp_path, x):
    file = tmp_path / "model.safetensors"
    source, other = Model(), Model()
    for model in (source, other):
        parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    save_file(rnnjit.compile(source).state_dict(), file)
    other = rnnjit.compile(other)
    other.load_state_dict(load_file(file))
    torch.testing.assert_close(other(x), source(x))
