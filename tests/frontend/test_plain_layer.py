"""Protects against streams and artifacts that would not compute what their module computes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rnnjit


class OwnForward(nn.RNN):
    def forward(self, input, hx=None):  # noqa: A002 - torch's own name
        y, h_n = super().forward(input, hx)
        return 2 * y, h_n


class OwnPermutation(nn.RNN):
    def permute_hidden(self, hx, permutation):
        return hx + 1


class OwnCheck(nn.RNN):
    def check_forward_args(self, *args):
        pass


class OwnWeights(nn.RNN):
    @property
    def _flat_weights(self):
        return [2 * weight for weight in self._parameters.values()]

    @_flat_weights.setter
    def _flat_weights(self, weights):
        pass


def set_on_the_instance():
    rnn = nn.RNN(3, 4)
    rnn.forward = lambda x, hx=None: (2 * x, hx)
    return rnn


def with_other_weights(rnn):
    rnn._flat_weights = [2 * weight.detach() for weight in rnn._flat_weights]
    return rnn


def with_another_method(rnn):
    rnn.permute_hidden = lambda hx, permutation: hx + 1
    return rnn


OWN = {
    "forward": (lambda: OwnForward(3, 4), "forward"),
    "compiled forward": (lambda: rnnjit.compile(OwnForward(3, 4)), "forward"),
    "forward set": (set_on_the_instance, "forward"),
    "permute_hidden": (lambda: OwnPermutation(3, 4), "permute_hidden"),
    "permute_hidden set": (lambda: with_another_method(nn.RNN(3, 4)), "permute_hidden"),
    "compiled permute_hidden": (
        lambda: with_another_method(rnnjit.compile(nn.RNN(3, 4))),
        "permute_hidden",
    ),
    "check_forward_args": (lambda: OwnCheck(3, 4), "check_forward_args"),
    "weights": (lambda: with_other_weights(nn.RNN(3, 4)), "_flat_weights"),
    "compiled weights": (
        lambda: with_other_weights(rnnjit.compile(nn.RNN(3, 4))),
        "_flat_weights",
    ),
    "property": (lambda: OwnWeights(3, 4), "_flat_weights"),
}


@pytest.mark.parametrize("name", OWN)
def test_what_torch_would_compute_otherwise_is_refused(name, tmp_path):
    make, what = OWN[name]
    said = f"module must compute what torch's own layer does, got .*, which overrides {what}:"
    module = make()
    with pytest.raises(ValueError, match=f"{said} a stream would not use that"):
        rnnjit.Stream(module)
    with pytest.raises(ValueError, match=f"{said} an artifact would not use that"):
        rnnjit.export_artifact(module, tmp_path / "artifact")
    assert not list(tmp_path.iterdir())


def test_an_unknown_layer_is_refused(tmp_path):
    module = nn.RNNBase("RNN_TANH", 3, 4)
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.RNN, .* got RNNBase"):
        rnnjit.Stream(module)
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.RNN, .* got RNNBase"):
        rnnjit.export_artifact(module, tmp_path / "artifact")


class Named(nn.RNN):
    """Has nothing of its own that the result depends on."""

    backend = "ours"

    def sizes(self):
        return self.input_size, self.hidden_size


class Renamed(nn.RNN):
    """Has nothing of its own at all."""


def parametrized():
    rnn = nn.RNN(3, 4)
    nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    return rnn


def pruned():
    rnn = nn.RNN(3, 4)
    prune.l1_unstructured(rnn, "weight_hh_l0", 0.5)
    return rnn


PLAIN = {
    "nn.RNN": lambda: nn.RNN(3, 4),
    "compiled": lambda: rnnjit.compile(nn.RNN(3, 4)),
    "subclass": lambda: Named(3, 4),
    "compiled subclass": lambda: rnnjit.compile(Renamed(3, 4)),
    "inplace": lambda: rnnjit.compile(Renamed(3, 4), inplace=True),
    "parametrized": parametrized,
    "compiled parametrized": lambda: rnnjit.compile(parametrized()),
    "pruned": pruned,
    "compiled pruned": lambda: rnnjit.compile(pruned()),
    "nn.LSTM": lambda: nn.LSTM(3, 4),
    "compiled LSTM": lambda: rnnjit.compile(nn.LSTM(3, 4), backend="eager"),
    "nn.GRU": lambda: nn.GRU(3, 4),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_torch_computes_streams(name):
    module, x = PLAIN[name](), torch.randn(5, 1, 3)
    stream = rnnjit.Stream(module)
    with torch.no_grad():
        y = module(x)[0]
    torch.testing.assert_close(torch.stack([stream.step(frame) for frame in x]), y)


@pytest.mark.parametrize("compiled", [False, True])
def test_hooks_take_no_part_in_a_stream(compiled):
    module = nn.RNN(3, 4)
    x = torch.randn(5, 1, 3)
    y = module(x)[0]
    module = rnnjit.compile(module) if compiled else module
    module.register_forward_hook(lambda *_: pytest.fail("a step called the module"))
    stream = rnnjit.Stream(module)
    torch.testing.assert_close(torch.stack([stream.step(frame) for frame in x]), y)
