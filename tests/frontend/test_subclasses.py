"""Protects subclasses of nn.RNN: compiled with all they have unless they override `forward`."""

import warnings

import pytest
import torch
from torch import nn

import rnnjit


class OwnForward(nn.RNN):
    def forward(self, input, hx=None):  # noqa: A002 - as nn.RNN has it
        y, h = super().forward(input, hx)
        return y + 1, h


class OwnMethods(nn.RNN):
    """Overrides, `super()`, class and instance attributes, a property: all but `forward`."""

    scale = 3

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.note = ["kept"]

    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.weight_hh_l0.fill_(0.25)

    def extra_repr(self):
        return super().extra_repr() + ", mine"

    @property
    def scaled_size(self):
        return self.scale * self.hidden_size

    @classmethod
    def family(cls):
        return cls.scale

    def last(self, x):
        return self(x)[1]


def test_subclasses_with_a_forward_of_their_own_are_left_alone_with_one_warning():
    torch.manual_seed(0)
    model = nn.ModuleList([OwnForward(3, 4), nn.RNN(3, 4), OwnForward(3, 4)])
    with pytest.warns(rnnjit.RNNJitWarning) as caught:
        fast = rnnjit.compile(model)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = "OwnForward at '0', OwnForward at '2' override forward and are left as before"
    assert str(caught[0].message) == message
    assert [type(m) for m in fast] == [OwnForward, rnnjit.CompiledRNN, OwnForward]
    x = torch.randn(2, 1, 3)
    assert torch.equal(fast[0](x)[0], model[0](x)[0])


def test_a_model_of_nothing_but_such_a_subclass_comes_back_working():
    rnn = OwnForward(3, 4)
    with pytest.warns(rnnjit.RNNJitWarning, match="^OwnForward overrides forward and is left"):
        fast = rnnjit.compile(rnn)
    assert type(fast) is OwnForward
    assert fast.weight_hh_l0 is rnn.weight_hh_l0


def test_a_forward_set_on_the_instance_is_an_override():
    rnn = nn.RNN(3, 4)
    rnn.forward = lambda x, hx=None: x
    with pytest.warns(rnnjit.RNNJitWarning, match="RNN overrides forward"):
        fast = rnnjit.compile(rnn, inplace=True)
    assert fast(3) == 3


@pytest.mark.parametrize("inplace", [False, True])
def test_other_subclasses_are_compiled_and_keep_what_they_have(inplace):
    torch.manual_seed(0)
    rnn, x = OwnMethods(3, 4), torch.randn(2, 1, 3)
    expected, shown = rnn(x), repr(rnn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = rnnjit.compile(rnn, backend="eager", inplace=inplace)
    assert isinstance(fast, rnnjit.CompiledRNN)
    assert not isinstance(fast, nn.RNN)
    assert repr(fast) == shown == "OwnMethods(3, 4, mine)"
    assert (fast.note, fast.scaled_size, fast.family()) == (["kept"], 12, 3)
    assert torch.equal(fast.last(x), expected[1])
    fast.reset_parameters()
    assert torch.equal(fast.weight_hh_l0, torch.full((4, 4), 0.25))
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = fast.nonesuch


def test_two_instances_of_a_subclass_have_one_class():
    first, second = rnnjit.compile(OwnMethods(3, 4)), rnnjit.compile(OwnMethods(3, 4))
    assert type(first) is type(second)


def test_a_subclass_of_a_subclass_keeps_its_chain():
    class Grandchild(OwnMethods):
        def extra_repr(self):
            return super().extra_repr() + " too"

    assert repr(rnnjit.compile(Grandchild(3, 4))) == "Grandchild(3, 4, mine too)"
