"""Protects compiled subclasses of torch's layers: the class does what it did."""

import copy
import functools
import pickle
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnjit
from rnnjit.testing import RecomputeBackend

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


def compiled(rnn, **options):
    """`rnn` compiled, where nothing may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rnnjit.compile(rnn, **options)


def assert_alike(fast, rnn, x=X):
    for got, expected in zip(fast(x), rnn(x), strict=True):
        torch.testing.assert_close(got, expected)


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


@pytest.mark.parametrize("inplace", [False, True])
def test_what_forward_calls_by_super_runs_compiled(inplace, monkeypatch):
    ran = []
    numba = rnnjit.backends()["numba"]
    forward = type(numba).forward
    monkeypatch.setattr(
        type(numba), "forward", lambda self, *a: ran.append(self) or forward(self, *a)
    )
    monkeypatch.setattr(type(numba), "shortcut", lambda *_: None)
    monkeypatch.setattr(type(numba), "training", lambda *_: None)
    torch.manual_seed(0)
    rnn = OwnForward(3, 4)
    expected = rnn(X)
    fast = compiled(rnn, inplace=inplace)
    torch.testing.assert_close(fast(X), expected)
    assert ran == [numba]
    assert isinstance(fast, OwnForward)
    assert (fast is rnn) == inplace


@pytest.mark.parametrize("inplace", [False, True])
def test_other_subclasses_are_compiled_and_keep_what_they_have(inplace):
    torch.manual_seed(0)
    rnn = OwnMethods(3, 4)
    expected, shown = rnn(X), repr(rnn)
    fast = compiled(rnn, backend="eager", inplace=inplace)
    assert isinstance(fast, rnnjit.CompiledRNN)
    assert isinstance(fast, (nn.RNN, OwnMethods))
    assert repr(fast) == shown == "OwnMethods(3, 4, mine)"
    assert (fast.note, fast.scaled_size, fast.family()) == (["kept"], 12, 3)
    assert torch.equal(fast.last(X), expected[1])
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


class Decorated(nn.RNN):
    """What a class that is rebuilt by copying its attributes breaks."""

    computed = 0

    def explicit(self, x):
        return super(Decorated, self).forward(x)  # noqa: UP008 - this form is what is tested

    @torch.no_grad()
    def without_gradients(self, x):
        return super().forward(x)

    @functools.cached_property
    def expensive(self):
        type(self).computed += 1
        return super().extra_repr()

    @contextmanager
    def doubled(self):
        yield 2 * super().forward(X)[0]

    @functools.singledispatchmethod
    def shown(self, value):
        return super().extra_repr() + str(value)

    def own(self):
        return isinstance(self, Decorated), Decorated.helper(self), type(self).__name__

    def helper(self):
        return self.hidden_size

    def sibling(self):
        return type(self)(self.input_size, self.hidden_size + 1), self.__class__(3, 4)


def test_every_kind_of_method_does_what_it_did():
    torch.manual_seed(0)
    rnn = Decorated(3, 4)
    fast = compiled(rnn)
    torch.testing.assert_close(fast.explicit(X), rnn.explicit(X))
    assert not fast.without_gradients(X)[0].requires_grad
    torch.testing.assert_close(fast.without_gradients(X), rnn.without_gradients(X))
    assert fast.expensive == rnn.expensive == fast.expensive == "3, 4"
    with fast.doubled() as got, rnn.doubled() as expected:
        torch.testing.assert_close(got, expected)
    assert fast.shown(1) == rnn.shown(1)
    assert fast.own() == rnn.own() == (True, 4, "Decorated")


def test_instances_of_its_own_class_are_compiled():
    torch.manual_seed(0)
    for made, size in zip(compiled(Decorated(3, 4)).sibling(), (5, 4), strict=True):
        assert (type(made), made.backend) == (type(compiled(Decorated(3, 4))), "auto")
        plain = Decorated(3, size)
        plain.load_state_dict(made.state_dict())
        assert_alike(made, plain)


def test_the_class_of_a_plain_layer_can_be_called():
    for make, x in ((nn.RNN, X), (nn.RNNCell, X[0])):
        module = rnnjit.compile(make(3, 4))
        assert isinstance(module, make)
        made, plain = type(module)(3, 5, nonlinearity="relu"), make(3, 5, nonlinearity="relu")
        assert type(made) is type(module)
        plain.load_state_dict(made.state_dict())
        torch.testing.assert_close(made(x), plain(x))


def test_no_hook_of_class_creation_runs_again():
    announced, named = [], []

    class Named:
        def __set_name__(self, owner, name):
            named.append(owner)

        def __get__(self, instance, owner=None):
            return 7

    class Registered(nn.RNN):
        __slots__ = ("extra",)
        seven = Named()

        def __init_subclass__(cls, *, key, **kwargs):
            super().__init_subclass__(**kwargs)
            announced.append((key, cls))

    class Mine(Registered, key="mine"):
        pass

    rnn = Mine(3, 4)
    rnn.extra = 5
    fast = compiled(rnn)
    assert announced == [("mine", Mine)]
    assert named == [Registered]
    assert (fast.extra, fast.seven) == (5, 7)
    assert_alike(fast, rnn)
    assert type(compiled(rnn, inplace=True)) is type(fast)
    assert (rnn.extra, rnn.seven) == (5, 7)
    assert_alike(fast, rnn)

    class Later(type(fast), key="later"):
        pass

    assert announced[1:] == [("later", Later)]


def test_a_metaclass_of_the_users_does_not_run_again():
    made = []

    class Registering(type):
        def __new__(cls, name, bases, namespace):
            made.append(name)
            return super().__new__(cls, name, bases, namespace)

    class Mine(nn.RNN, metaclass=Registering):
        pass

    rnn = Mine(3, 4)
    assert_alike(compiled(rnn), rnn)
    assert made == ["Mine"]


def test_abstract_bases():
    class Base(ABC):
        @abstractmethod
        def name(self): ...

    class Mine(nn.RNN, Base):
        def name(self):
            return "mine"

    rnn = Mine(3, 4)
    fast = compiled(rnn)
    assert fast.name() == "mine"
    assert isinstance(fast, Base)
    assert not isinstance(rnn, type(fast))
    assert_alike(fast, rnn)


def test_mixins_on_either_side():
    class Scale:
        def forward(self, *args):
            y, h = super().forward(*args)
            return 3 * y, h

    class Before(Scale, nn.RNN):
        pass

    class Cell(Scale, nn.RNNCell):
        def forward(self, *args):
            return 2 * nn.RNNCell.forward(self, *args)

    for rnn in (Before(3, 4), nn.Sequential(Before(3, 4))):
        assert_alike(compiled(rnn), rnn)
    cell = Cell(3, 4)
    torch.testing.assert_close(compiled(cell)(X[0]), cell(X[0]))


def test_methods_that_are_patched_later_take_effect(monkeypatch):
    class Mine(nn.RNN):
        def answer(self):
            return 1

    rnn = Mine(3, 4)
    fast = compiled(rnn)
    assert fast.answer() == 1
    monkeypatch.setattr(Mine, "answer", lambda self: 42)
    monkeypatch.setattr(Mine, "forward", lambda self, x: x + 1, raising=False)
    assert fast.answer() == 42
    assert torch.equal(fast(X), X + 1)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_are_compiled(copied):
    fast = compiled(OwnForward(3, 4), backend="numba")
    other = copied(fast)
    assert type(other) is type(fast)
    assert other.backend == "numba"
    assert_alike(other, fast)


def test_a_copy_that_the_class_itself_makes_is_compiled():
    class Mine(nn.RNN):
        def __deepcopy__(self, memo):
            cls = self.__class__
            made = cls.__new__(cls)
            memo[id(self)] = made
            vars(made).update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
            return made

    fast = compiled(Mine(3, 4))
    other = copy.deepcopy(fast)
    assert type(other) is type(fast)
    assert_alike(other, fast)


OVERRIDES = {
    "permute_hidden": lambda self, hx, order: hx + 1,
    "check_forward_args": lambda self, *args: None,
    "check_input": lambda self, *args: None,
    "check_hidden_size": lambda self, *args: None,
    "get_expected_hidden_size": lambda self, *args: (1, 2, 4),
    "_flat_weights": property(
        lambda self: [2 * weight for weight in self.parameters()], lambda self, value: None
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides_of_what_torch_uses_inside_leave_a_module_eager_with_a_warning(name):
    rnn = type("Mine", (nn.RNN,), {name: OVERRIDES[name]})(3, 4)
    model = nn.ModuleList([rnn, nn.RNN(3, 4)])
    with pytest.warns(
        rnnjit.RNNJitWarning, match=rf"^left eager: Mine at '0' \(overrides {name}\)$"
    ):
        fast = rnnjit.compile(model)
    assert type(fast[0]) is type(rnn)
    hx = torch.zeros(1, 2, 4)
    torch.testing.assert_close(fast[0](X, hx), rnn(X, hx))
    assert f"left eager: it overrides {name}" in str(rnnjit.explain(rnn, X))


def test_one_warning_names_all_of_them():
    class Inside(nn.RNN):
        def permute_hidden(self, hx, permutation):
            return hx

    model = nn.ModuleList([Inside(3, 4), nn.RNN(3, 4), Inside(3, 4)])
    model.append(nn.RNN(3, 4))
    model[3].forward = lambda x, hx=None: x
    with pytest.warns(rnnjit.RNNJitWarning) as caught:
        fast = rnnjit.compile(model, inplace=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(caught[0].message) == (
        "left eager: Inside at '0', Inside at '2' (overrides permute_hidden); RNN at '3' "
        "(overrides forward)"
    )
    assert [type(m) for m in fast] == [Inside, rnnjit.CompiledRNN, Inside, nn.RNN]
    assert fast[3](3) == 3


def test_a_list_of_weights_that_was_assigned_is_what_torch_uses():
    def assigned(rnn):
        rnn._flat_weights = [2 * weight.detach() for weight in rnn.parameters()]

    torch.manual_seed(0)
    before, rnn = nn.RNN(3, 4), nn.RNN(3, 4)
    rnn.load_state_dict(before.state_dict())
    fast = compiled(before)
    assert_alike(fast, rnn)
    assigned(rnn)
    assigned(fast)
    assert_alike(fast, rnn)
    with pytest.warns(rnnjit.RNNJitWarning, match=r"RNN \(overrides _flat_weights\)"):
        assert rnnjit.compile(rnn, inplace=True) is rnn
    assert type(rnn) is nn.RNN
    fast._flat_weights = list(fast.parameters())
    assert_alike(fast, before)


@pytest.mark.parametrize(
    "namespace",
    [
        {"backend": "mine"},
        {"backend": lambda self: 1},
        {"_call": lambda self, *args: None},
        {"__init__": lambda self, *sizes: nn.RNN.__init__(self, *sizes) or self.tell()},
    ],
)
def test_names_that_compiled_modules_use_leave_a_module_eager(namespace):
    def tell(self):
        self.backend = "mine"

    rnn = type("Mine", (nn.RNN,), {"tell": tell, **namespace})(3, 4)
    with pytest.warns(rnnjit.RNNJitWarning, match="Mine.*has an attribute .* compiled modules"):
        fast = rnnjit.compile(nn.Sequential(rnn))
    assert type(fast[0]) is type(rnn)
    if "backend" not in namespace and "_call" not in namespace:
        assert fast[0].backend == "mine"


def test_weights_that_are_no_parameters_leave_a_module_eager():
    class Scaled(nn.RNN):
        def __getattr__(self, name):
            value = super().__getattr__(name)
            return 2 * value if name.startswith("weight") else value

    with pytest.warns(rnnjit.RNNJitWarning, match="overrides weight_ih_l0"):
        rnnjit.compile(nn.Sequential(Scaled(3, 4)), inplace=True)


def test_what_torch_uses_may_be_assigned_after_compiling():
    torch.manual_seed(0)
    rnn, hx = nn.RNN(3, 4), torch.zeros(1, 2, 4)
    fast = compiled(rnn)
    fast(X, hx)
    for module in (rnn, fast):
        module.permute_hidden = lambda state, order: state + 1
    torch.testing.assert_close(fast(X, hx), rnn(X, hx))
    assert "was assigned" in str(rnnjit.explain(fast, X, hx))


def test_a_class_with_super_may_be_assigned():
    rnn = nn.RNN(3, 4)
    fast = compiled(rnn)
    for module in (rnn, fast):
        module.__class__ = OwnForward
    assert isinstance(fast, OwnForward)
    assert_alike(fast, rnn)


def test_a_class_that_takes_arguments_when_it_is_made():
    class Mine(nn.RNN):
        def __new__(cls, required):
            return super().__new__(cls)

        def __init__(self, required):
            super().__init__(3, 4)

    rnn = Mine(1)
    assert_alike(compiled(rnn), rnn)


def test_a_compiled_subclass_in_a_model_that_torch_compiles():
    """torch.compile breaks the graph there, and must not trace what runs instead."""
    rnn = OwnForward(3, 4)
    model = torch.compile(nn.Sequential(compiled(rnn)), backend="eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(20):
        y, _ = model(X)
        y.sum().backward()
    torch.testing.assert_close(y, rnn(X)[0])
    assert torch._dynamo.utils.counters["frames"]["total"] < 10


class Handled(ABC, nn.RNNBase):
    """What forecasting libraries put around torch's layers: it packs, runs them and unpacks."""

    @abstractmethod
    def init_hidden_state(self, x): ...

    @abstractmethod
    def repeat_interleave(self, state, count): ...

    def forward(self, x, hx=None, lengths=None, enforce_sorted=True):
        if isinstance(x, PackedSequence):
            return super().forward(x, hx=hx)
        if lengths is None:
            return super().forward(x, hx)
        if lengths.max() == 0:
            return x.new_zeros(*x.shape[:2], self.hidden_size), self.init_hidden_state(x)
        kept = lengths.where(lengths > 0, torch.ones_like(lengths))
        packed = pack_padded_sequence(
            x, kept.cpu(), batch_first=self.batch_first, enforce_sorted=enforce_sorted
        )
        y, state = super().forward(packed, hx=hx)
        y, _ = pad_packed_sequence(y, batch_first=self.batch_first)
        return y, self.blank(state, lengths == 0)

    def blank(self, state, where):
        return state.masked_fill(where[None, :, None], 0.0)


class HandledGRU(Handled, nn.GRU):
    def init_hidden_state(self, x):
        return x.new_zeros(self.num_layers, x.shape[0 if self.batch_first else 1], self.hidden_size)

    def repeat_interleave(self, state, count):
        return state.repeat_interleave(count, 1)


class HandledLSTM(Handled, nn.LSTM):
    def init_hidden_state(self, x):
        h = x.new_zeros(self.num_layers, x.shape[0 if self.batch_first else 1], self.hidden_size)
        return h, h.clone()

    def repeat_interleave(self, state, count):
        return tuple(part.repeat_interleave(count, 1) for part in state)

    def blank(self, state, where):
        return tuple(Handled.blank(self, part, where) for part in state)


@pytest.mark.parametrize("kind", [HandledLSTM, HandledGRU])
def test_layers_of_forecasting_libraries(kind):
    """Their code runs, and what it calls of torch's layer is compiled."""
    torch.manual_seed(0)
    rnn = kind(3, 4, num_layers=2, batch_first=True)
    counting = Counting()
    fast, x = compiled(rnn, backend=counting), X.transpose(0, 1)
    own = nn.LSTM if kind is HandledLSTM else nn.GRU
    assert isinstance(fast, (kind, own, Handled))
    assert not isinstance(fast, nn.GRU if own is nn.LSTM else nn.LSTM)
    hx = fast.init_hidden_state(x)
    torch.testing.assert_close(hx, rnn.init_hidden_state(x))
    packed = pack_padded_sequence(x, torch.tensor([5, 2]), batch_first=True)
    calls = [
        lambda module: module(x),
        lambda module: module(x, hx=hx),
        lambda module: module(x, lengths=torch.tensor([3, 5]), enforce_sorted=False),
        lambda module: module(x, hx, torch.tensor([4, 0])),
        lambda module: (lambda y, state: (y.data, state))(*module(packed, hx)),
        lambda module: module.repeat_interleave(module(x)[1], 3),
    ]
    for call in calls:
        before = counting.layers
        torch.testing.assert_close(call(fast), call(rnn))
        assert counting.layers == before + 2
    torch.testing.assert_close(fast(x, lengths=torch.zeros(2).long()), (torch.zeros(2, 5, 4), hx))
    again = pickle.loads(pickle.dumps(compiled(rnn, backend="eager")))
    assert type(again) is type(fast)
    torch.testing.assert_close(again(x), rnn(x))


class Counting(RecomputeBackend):
    """Counts the layers that it computes."""

    name = "counting"
    layers = 0

    def forward(self, *args):
        self.layers += 1
        return super().forward(*args)
