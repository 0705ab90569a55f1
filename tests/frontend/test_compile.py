"""Protects `rnnjit.compile`: what it finds, shares and leaves unchanged."""

import collections
import copy
import types
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.ir import RNN_TANH
from rnnjit.testing import RecomputeBackend


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.inner = nn.ModuleDict({"rnn": nn.RNN(4, 5)})
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.inner["rnn"](self.front(x))[0])


class PlainList(nn.Module):
    def __init__(self):
        super().__init__()
        self._rnns = [nn.RNN(3, 3), {"deep": (nn.RNN(3, 3),)}]

    def forward(self, x):
        return self._rnns[1]["deep"][0](self._rnns[0](x)[0])[0]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.RNN(3, 3)
        self.second = self.first
        self.both = nn.ModuleList([self.first, nn.RNN(3, 3)])

    def forward(self, x):
        return self.both[1](self.second(self.first(x)[0])[0])[0]


def compiled_rnns(module):
    return [m for m in module.modules() if isinstance(m, rnnjit.CompiledRNN)]


def test_a_bare_rnn():
    rnn = nn.RNN(3, 4)
    fast = rnnjit.compile(rnn)
    assert isinstance(fast, rnnjit.CompiledRNN)
    assert isinstance(fast, nn.RNN)
    assert (fast.__class__, type(fast)) == (nn.RNN, rnnjit.CompiledRNN)
    assert type(rnn) is nn.RNN
    assert fast is not rnn


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (Nested(), 1),
        (nn.Sequential(nn.RNN(3, 3)), 1),
        (nn.ModuleList([nn.RNN(3, 3), nn.Sequential(nn.RNN(3, 3))]), 2),
        (Tied(), 2),
    ],
)
def test_every_rnn_of_a_model_is_replaced(model, count):
    fast = rnnjit.compile(model)
    assert type(fast) is type(model)
    assert len(compiled_rnns(fast)) == count
    assert not any(type(m) is nn.RNN for m in fast.modules())
    assert not compiled_rnns(model)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("make", [Nested, Tied, PlainList])
def test_a_model_gives_the_values_it_gave(make, inplace):
    torch.manual_seed(0)
    model = make()
    x = torch.randn(6, 2, 3)
    expected = model(x)
    fast = rnnjit.compile(model, backend="eager", inplace=inplace)
    assert torch.equal(fast(x), expected)


def test_rnns_in_plain_containers_are_replaced_and_share_their_parameters():
    model = PlainList()
    fast = rnnjit.compile(model)
    for old, new in (
        (model._rnns[0], fast._rnns[0]),
        (model._rnns[1]["deep"][0], fast._rnns[1]["deep"][0]),
    ):
        assert type(old) is nn.RNN
        assert isinstance(new, rnnjit.CompiledRNN)
        assert new.weight_hh_l0 is old.weight_hh_l0


def test_an_rnn_used_twice_stays_one_module():
    fast = rnnjit.compile(Tied())
    assert fast.first is fast.second is fast.both[0]
    assert list(fast.state_dict()) == list(Tied().state_dict())


def test_parameters_and_buffers_are_shared_by_identity_and_in_order():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.RNN(3, 4, 2, bidirectional=True), nn.Linear(8, 1))
    fast = rnnjit.compile(model)
    for kind in ("named_parameters", "named_buffers"):
        pairs = list(zip(getattr(model, kind)(), getattr(fast, kind)(), strict=True))
        assert pairs
        assert all(old[0] == new[0] and old[1] is new[1] for old, new in pairs)


@pytest.mark.parametrize("order", ["optimizer first", "compile first"])
def test_an_optimizer_made_before_or_after_trains_both(order):
    torch.manual_seed(0)
    rnn, x = nn.RNN(3, 4), torch.randn(5, 2, 3)
    if order == "optimizer first":
        optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
        fast = rnnjit.compile(rnn)
    else:
        fast = rnnjit.compile(rnn)
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    before = rnn(x)[0].detach().clone()
    fast(x)[0].sum().backward()
    optimizer.step()
    after = rnn(x)[0]
    assert not torch.allclose(after, before)
    torch.testing.assert_close(fast(x)[0], after)


def test_the_original_is_untouched():
    model = Nested()
    fast = rnnjit.compile(model)
    rnn = model.inner["rnn"]
    fast.eval()
    assert model.training
    assert rnn.training
    fast.inner["rnn"].register_forward_hook(lambda *_: None)
    fast.inner["rnn"].register_forward_pre_hook(lambda *_: None)
    fast.inner["rnn"].mark = 1
    fast.inner["rnn"].dropout = 0.5
    assert not rnn._forward_hooks
    assert not rnn._forward_pre_hooks
    assert not hasattr(rnn, "mark")
    assert rnn.dropout == 0
    assert type(rnn) is nn.RNN
    assert type(model.inner["rnn"]) is nn.RNN


def test_weights_assigned_to_the_copy_stay_out_of_the_original():
    rnn = nn.RNN(3, 4)
    kept = rnn.weight_hh_l0
    fast = rnnjit.compile(rnn)
    fast.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4))
    assert rnn.weight_hh_l0 is kept
    assert rnn._flat_weights[1] is kept


def test_inplace_returns_the_same_objects():
    model = Nested()
    rnn, optimizer = model.inner["rnn"], torch.optim.SGD(model.parameters())
    assert rnnjit.compile(model, inplace=True) is model
    assert model.inner["rnn"] is rnn
    assert isinstance(rnn, rnnjit.CompiledRNN)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }


def test_hooks_bound_to_the_model_follow_the_copy():
    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.seen = nn.RNN(3, 4), []
            self.rnn.register_forward_hook(self.watch)

        def watch(self, rnn, args, output):
            self.seen.append(type(rnn))

        def forward(self, x):
            return self.rnn(x)[0]

    model = Watching()
    fast = rnnjit.compile(model)
    fast(torch.randn(2, 1, 3))
    assert model.seen == []
    assert fast.seen == [rnnjit.CompiledRNN]


@pytest.mark.parametrize("inplace", [False, True])
def test_compiling_a_compiled_module_chooses_anew(inplace):
    rnn = nn.RNN(3, 4)
    fast = rnnjit.compile(rnn)
    again = rnnjit.compile(fast, backend="eager", inplace=inplace)
    assert (again is fast) == inplace
    assert again.backend == "eager"
    assert inplace or fast.backend == "auto"
    assert again.weight_ih_l0 is rnn.weight_ih_l0
    assert type(again) is rnnjit.CompiledRNN
    x = torch.randn(3, 2, 3)
    assert torch.equal(again(x)[0], rnn(x)[0])


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Tanh())])
def test_a_module_without_a_recurrent_one_is_refused(model):
    said = (
        "^module contains no nn.GRU, nn.GRUCell, nn.LSTM, nn.LSTMCell, nn.RNN, nn.RNNCell or "
        f"rnnjit.Recurrent to compile: {type(model).__name__} has"
    )
    with pytest.raises(ValueError, match=said):
        rnnjit.compile(model)


class TanhOnly(RecomputeBackend):
    name = "tanh-only"
    operations = RNN_TANH.operations


@pytest.fixture
def only_tanh(monkeypatch):
    """The one compiled backend that is installed computes nn.RNN's default cell alone."""
    found = {"tanh-only": TanhOnly(), "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)


@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize(
    ("model", "backend", "words"),
    [
        (nn.LSTM(2, 2), "auto", "LSTM has 1 modules; no compiled backend computes lstm layers"),
        (nn.GRUCell(2, 2), "auto", "GRUCell has 1 .*; no compiled backend computes gru layers"),
        (
            nn.Sequential(nn.GRU(2, 2), nn.LSTM(2, 2)),
            "auto",
            "Sequential has 3 modules; no compiled backend computes gru layers; "
            "no compiled backend computes lstm layers",
        ),
        (
            nn.RNN(2, 2, nonlinearity="relu"),
            TanhOnly(),
            "RNN has 1 modules; backend 'tanh-only' computes no relu layers",
        ),
    ],
)
def test_a_module_of_layers_that_no_backend_computes_is_refused(model, backend, words):
    with pytest.raises(ValueError, match=f"^module contains nothing to compile: {words}$"):
        rnnjit.compile(model, backend=backend)


NOT_COMPUTED = (
    r"^left eager: LSTM at '2' \(backend 'tanh-only' computes no lstm layers\); GRUCell at '3' \(.*"
    r"; RNN at '4', RNNCell at '5' \(backend 'tanh-only' computes no relu layers\)$"
)


@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize(
    ("backend", "warned"),
    [
        ("auto", nullcontext()),
        (TanhOnly(), pytest.warns(rnnjit.RNNJitWarning, match=NOT_COMPUTED)),
    ],
    ids=["auto", "named"],
)
def test_what_no_compiled_or_not_the_named_backend_computes_stays_eager(backend, warned):
    model = nn.ModuleList([nn.RNN(2, 3), nn.RNNCell(2, 3), nn.LSTM(2, 3), nn.GRUCell(2, 3)])
    relu = [make(2, 3, nonlinearity="relu") for make in (nn.RNN, nn.RNNCell)]
    with warned:
        fast = rnnjit.compile(model.extend(relu), backend=backend)
    compiled = [rnnjit.CompiledRNN, rnnjit.CompiledRNNCell]
    assert [type(m) for m in fast] == [*compiled, nn.LSTM, nn.GRUCell, nn.RNN, nn.RNNCell]
    assert fast[2].weight_hh_l0 is model[2].weight_hh_l0
    x = torch.randn(4, 1, 2)
    torch.testing.assert_close(fast[0](x), model[0](x))
    note = rnnjit.explain(fast[2], x).calls[0].note
    assert note == "left eager: no compiled backend computes lstm layers"


def test_a_backend_that_fails_to_say_which_cells_it_computes_does_not_fail_the_others(monkeypatch):
    class Odd(RecomputeBackend):
        name = "odd"

        def why_not_cell(self, cell):
            raise KeyError(cell.name)

    found = {"odd": Odd(), "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    rnn, x = nn.RNN(2, 3), torch.randn(4, 1, 2)
    fast = rnnjit.compile(rnn)
    torch.testing.assert_close(fast(x), rnn(x))
    assert "odd: declines: asked for its answer, it raised KeyError: 'tanh'" in str(
        rnnjit.explain(fast, x)
    )


class OwnLSTM(nn.LSTM):
    def check_input(self, *args):
        pass


@pytest.mark.usefixtures("only_tanh")
def test_a_subclass_that_no_backend_computes_is_left_without_a_warning():
    model = nn.ModuleList([nn.RNN(2, 3), OwnLSTM(2, 3)])
    assert [type(m) for m in rnnjit.compile(model)] == [rnnjit.CompiledRNN, OwnLSTM]
    with pytest.warns(rnnjit.RNNJitWarning, match=r"^left eager: OwnLSTM at '1' \(overrides c"):
        rnnjit.compile(model, backend="eager")


@pytest.mark.parametrize("module", [None, 3, "rnn", nn.RNN, torch.zeros(1)])
def test_what_is_no_module_is_refused(module):
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got"):
        rnnjit.compile(module)


def test_wrong_backends_are_refused_before_anything_is_changed():
    rnn = nn.RNN(2, 3)
    with pytest.raises(ValueError, match="backend 'nonesuch' is not installed; expected one of 'a"):
        rnnjit.compile(rnn, backend="nonesuch", inplace=True)
    with pytest.raises(TypeError, match=r"backend must be 'auto', the name of .* got NoneType"):
        rnnjit.compile(rnn, backend=None, inplace=True)
    assert type(rnn) is nn.RNN


def test_a_model_that_cannot_be_copied_names_the_way_out():
    model = Nested()
    model.stream = (i for i in range(3))
    with pytest.raises(TypeError, match=r"Nested cannot be copied .*inplace=True"):
        rnnjit.compile(model)
    rnnjit.compile(model, inplace=True)
    assert len(compiled_rnns(model)) == 1


KINDS = [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell]


class AllKinds(nn.Module):
    """Every layer and cell of torch: nested, in a plain list, and some of them twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.RNN(3, 3), nn.Sequential(nn.LSTM(3, 3, proj_size=2))])
        self.gru = nn.GRU(2, 3, 2, bidirectional=True)
        self.again = self.gru
        self._plain = [{"cells": (nn.RNNCell(6, 3), nn.LSTMCell(3, 3))}]
        self.cell = nn.GRUCell(3, 3)

    def forward(self, x):
        x, _ = self.layers[0](x)
        x, (h, c) = self.layers[1][0](x)
        y, _ = self.gru(x)
        z, last = self.again(x, y.new_ones(4, x.shape[1], 3))
        first, second = self._plain[0]["cells"]
        state = first((y + z)[-1])
        state, memory = second(state, (state, c[0]))
        return self.cell(state, self.cell(memory, last[0])), h


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("inplace", [False, True])
def test_every_kind_in_one_model(inplace):
    torch.manual_seed(0)
    model, x = AllKinds(), torch.randn(5, 2, 3)
    expected = model(x)
    gradients = torch.autograd.grad(expected[0].sum(), list(model.parameters()))
    fast = rnnjit.compile(model, backend="eager", inplace=inplace)
    plain = fast._plain[0]["cells"]
    found = [*fast.layers[:1], fast.layers[1][0], fast.gru, *plain, fast.cell]
    assert [type(m).__name__ for m in found] == [f"Compiled{kind.__name__}" for kind in KINDS]
    assert all(isinstance(m, kind) for m, kind in zip(found, KINDS, strict=True))
    assert fast.gru is fast.again
    torch.testing.assert_close(fast(x), expected)
    loss = fast(x)[0].sum()
    torch.testing.assert_close(torch.autograd.grad(loss, list(fast.parameters())), gradients)


def test_recurrent_modules_of_other_classes_stay_eager():
    class Other(nn.RNNCellBase):
        pass

    fast = rnnjit.compile(nn.ModuleList([nn.RNN(2, 3), Other(2, 3, True, 1)]))
    assert type(fast[1]) is Other
    said = (
        "left eager: it is no nn.GRU, nn.GRUCell, nn.LSTM, nn.LSTMCell, nn.RNN, nn.RNNCell or "
        "rnnjit.Recurrent"
    )
    assert rnnjit.explain(fast).calls[1].note == said


def test_the_backend_may_be_assigned():
    fast = rnnjit.compile(nn.RNN(3, 4))
    fast(torch.randn(2, 1, 3))
    fast.backend = "eager"
    assert fast.backend == "eager"
    assert not fast._choices
    with pytest.raises(ValueError, match="not installed"):
        fast.backend = "nonesuch"
    assert fast.backend == "eager"


def test_parameters_in_plain_containers_are_shared():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 3)
            self.scales = [nn.Parameter(torch.ones(3)), (torch.ones(2),)]
            self.by_name = {"deep": [{"shift": nn.Parameter(torch.zeros(3))}]}

        def forward(self, x):
            return self.rnn(x)[0] * self.scales[0] + self.by_name["deep"][0]["shift"]

    model = Holder()
    held = [model.scales[0], model.by_name["deep"][0]["shift"]]
    optimizer = torch.optim.SGD([*model.parameters(), *held], lr=0.1)
    fast = rnnjit.compile(model)
    assert fast.scales is not model.scales
    assert fast.scales[1][0] is model.scales[1][0]
    fast(torch.ones(4, 1, 2)).sum().backward()
    optimizer.step()
    assert (held[0] != 1).all()
    torch.testing.assert_close(fast(torch.ones(4, 1, 2)), model(torch.ones(4, 1, 2)))


class CopiesItself(nn.Module):
    """Constructs a new model where it is copied, and loads the state into it."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(2, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class ByDeepcopy(CopiesItself):
    def __deepcopy__(self, memo):
        made = type(self)()
        made.load_state_dict(self.state_dict())
        return made


def rebuilt(cls, state):
    made = cls()
    made.load_state_dict(state)
    return made


class ByReduce(CopiesItself):
    def __reduce__(self):
        return rebuilt, (type(self), self.state_dict())


class ByReduceEx(CopiesItself):
    def __reduce_ex__(self, protocol):
        return rebuilt, (type(self), self.state_dict())


class CopiesTheRest(CopiesItself):
    """Its copy holds what the memo has for its RNN, but another head."""

    def __deepcopy__(self, memo):
        made = type(self)()
        made.rnn = copy.deepcopy(self.rnn, memo)
        made.head.load_state_dict(self.head.state_dict())
        return made


@pytest.mark.parametrize("cls", [ByDeepcopy, ByReduce, ByReduceEx, CopiesTheRest])
@pytest.mark.parametrize("inside", [False, True])
def test_a_class_whose_copies_share_nothing_is_refused(cls, inside):
    model = nn.Sequential(cls(), nn.Tanh()) if inside else cls()
    said = rf"{cls.__name__} copies itself in its own way.*compile\(module, inplace=True\)"
    with pytest.raises(TypeError, match=said):
        rnnjit.compile(model)
    x = torch.ones(4, 1, 2)
    y = model(x)
    assert rnnjit.compile(model, inplace=True) is model
    torch.testing.assert_close(model(x), y)


def test_a_class_whose_copies_go_by_the_memo_is_compiled():
    class Faithful(CopiesItself):
        def __deepcopy__(self, memo):
            made = type(self).__new__(type(self))
            memo[id(self)] = made
            vars(made).update(copy.deepcopy(vars(self), memo))
            return made

    model = Faithful()
    fast = rnnjit.compile(model)
    assert type(fast.rnn) is type(rnnjit.compile(nn.RNN(2, 3)))
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "hold", [lambda rnn: collections.deque([rnn]), lambda rnn: types.SimpleNamespace(rnn=rnn)]
)
def test_what_other_containers_hold_stays_eager_and_is_copied(hold):
    model = CopiesItself()
    model.held = hold(nn.RNN(2, 3))
    fast = rnnjit.compile(model)

    def of(holder):
        return holder.held[0] if isinstance(holder.held, collections.deque) else holder.held.rnn

    assert type(of(fast)) is nn.RNN
    assert of(fast).weight_hh_l0 is not of(model).weight_hh_l0
    assert fast.rnn.weight_hh_l0 is model.rnn.weight_hh_l0
