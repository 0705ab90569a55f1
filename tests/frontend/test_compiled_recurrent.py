"""Protects compiled stacks of users' cells: they compute what the cells' own loop computes."""

import copy
import io
import pickle

import pytest
import torch
from covered import covered, in_full
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence
from user_cells import (
    CELLS,
    LSTM,
    REFERENCE,
    IndRNN,
    Kept,
    LeakyRNN,
    Normed,
    PeepholeLSTM,
    outcome,
)

import rnnjit
from rnnjit.reference import ReferenceBackend

T, B, I, H = 4, 5, 3, 6
LENGTHS = [3, 4, 1, 2, 4]
STACKS = {
    "one layer": {},
    "two directions": {"bidirectional": True, "batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.4},
    "all": {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "batch_first": True},
}


def made(cell, **stack):
    torch.manual_seed(0)
    return rnnjit.Recurrent(CELLS[cell](I, H), **stack).double()


def states(module, *batch):
    count = module.num_layers * module.num_directions
    found = tuple(torch.randn(count, *batch, H).double() for _ in module.cells[0].states)
    return found if len(found) > 1 else found[0]


def arguments(module, call):
    """The arguments of a call of this kind."""
    x = torch.randn(T, B, I).double()
    own = x.transpose(0, 1) if module.batch_first else x
    reset = torch.rand(own.shape[:2]) < 0.3
    hx = states(module, B)
    if call == "unbatched":
        return (x[:, 0],), {}
    if call == "packed":
        first = module.batch_first
        return (pack_padded_sequence(own, LENGTHS, first, False), hx), {"return_states": True}
    if call == "resets":
        return (own, None, reset), {}
    if call == "resets to":
        width = module.num_directions * H
        to = tuple(
            torch.randn(module.num_layers, *own.shape[:2], width).double()
            for _ in module.cells[0].states
        )
        to = to if len(to) > 1 else to[0]
        return (own, hx, reset, to), {"return_states": True}
    return {"dense": ((own,), {}), "states": ((own, hx), {"return_states": True})}[call]


#: Those that are compiled in `make test`.
COMPILED = ("LeakyRNN", "Normed")
CALLS = ("dense", "states", "packed", "unbatched", "resets", "resets to")


def compare(found, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize(
    ("cell", "stack", "call", "training"), covered(list(CELLS), list(STACKS), CALLS, [True, False])
)
def test_values_and_gradients_are_those_of_the_loop(cell, stack, call, training):
    module = made(cell, **STACKS[stack]).train(training)
    fast = rnnjit.compile(module, backend=REFERENCE)
    given, named = arguments(module, call)
    expected = outcome(module, *given, **named)
    after = torch.get_rng_state()
    for _ in range(2):  # the second one may take the fast path
        compare(outcome(fast, *given, **named), expected)
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    ("cell", "call"),
    # Each cell is compiled for seconds, and the conformance kit has others.
    [*covered(COMPILED, CALLS), *in_full([name for name in CELLS if name not in COMPILED], CALLS)],
)
@pytest.mark.filterwarnings("error")
def test_the_chosen_backend_agrees_in_single_precision(cell, call):
    module = made(cell, num_layers=2, bidirectional=True)
    given, named = arguments(module, call)
    expected = outcome(copy.deepcopy(module).eval(), *given, **named)
    fast = rnnjit.compile(module.float().eval())
    given = tuple(single(each) for each in given)
    found = outcome(fast, *given, **named)
    expected = [[each.float() for each in part] for part in expected]
    compare(list(found), expected, rtol=2e-4, atol=2e-5)


def single(value):
    if isinstance(value, tuple) and not hasattr(value, "batch_sizes"):
        return tuple(single(each) for each in value)
    double = isinstance(value, torch.Tensor) and value.dtype is not torch.bool
    return value.to(torch.float32) if double or hasattr(value, "batch_sizes") else value


@pytest.mark.parametrize("call", CALLS)
def test_torchs_lstm_written_again_has_the_bits_of_the_built_in(call):
    torch.manual_seed(0)
    theirs = rnnjit.compile(nn.LSTM(I, H, 2, bidirectional=True))
    ours = rnnjit.compile(rnnjit.Recurrent(LSTM(I, H), 2, bidirectional=True))
    ours.load_state_dict(theirs.state_dict())
    given, named = arguments(ours, call)
    given = tuple(single(each) for each in given)
    compare(outcome(ours, *given, **named), outcome(theirs, *given, **named), rtol=0, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batches_and_single_steps(cell):
    module = made(cell, bidirectional=True)
    for shape in ((3, 0, I), (1, 2, I), (1, 1, I)):
        fast = rnnjit.compile(module, backend=Kept())
        x = torch.randn(shape).double()
        compare(outcome(fast, x), outcome(module, x))


@pytest.mark.parametrize("cell", CELLS)
def test_second_gradients(cell):
    module = made(cell)
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(3, 2, I).double().requires_grad_()
    found = []
    for each in (module, fast):
        torch.manual_seed(1)
        y = each(x)[0]
        weights = [x, each.weight_ih_l0, *each.parameters()]
        first = torch.autograd.grad((y**2).sum(), weights[:2], create_graph=True)
        total = sum((grad**2).sum() for grad in first)
        second = torch.autograd.grad(total, weights, allow_unused=True)
        found.append([first, [torch.zeros(()) if g is None else g for g in second]])
    compare(found[1], found[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms_of_torch_func():
    module = made("PeepholeLSTM")
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(3, 2, I).double()
    for transform in (
        lambda m: torch.func.jacrev(lambda x: m(x)[0].sum(0))(x),
        lambda m: torch.func.vmap(lambda x: m(x)[0])(x),
        lambda m: torch.func.jvp(lambda x: m(x)[0], (x,), (x,))[1],
        lambda m: torch.func.functional_call(m, {"p_l0": torch.ones(3, H).double()}, (x,))[0],
    ):
        compare(transform(fast), transform(module))


def test_other_modes_dtypes_and_attributes_are_traced_anew():
    module = made("LeakyRNN")
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(T, B, I).double()
    noisy = outcome(fast, x)
    compare(noisy, outcome(module, x))
    for each in (module, fast):
        each.eval()
    compare(outcome(fast, x), outcome(module, x))
    assert not torch.equal(noisy[0][0], outcome(fast, x)[0][0])
    for each in (module, fast):
        each.train()
    for each in (module, fast):
        each.cells[0].sigma = 0.7
    compare(outcome(fast, x), outcome(module, x))
    single = copy.deepcopy(fast).float()
    assert single(x.float())[0].dtype is torch.float32
    compare(outcome(fast, x), outcome(module, x))


class Scaled(rnnjit.Cell):
    """A cell of which an attribute is a part of the program."""

    scale = 2.0

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.slope = 1.0

    def forward(self, x, h):
        return torch.tanh(self.slope * self.ih(x) + self.hh(h))


def test_an_attribute_of_the_program_counts_on_the_fast_path_too():
    fast = rnnjit.compile(rnnjit.Recurrent(Scaled(I, H)), backend=Kept())
    x = torch.randn(T, B, I)
    with torch.no_grad():
        first = [fast(x)[0] for _ in range(3)]
        fast.cells[0].slope = 0.0
        second = fast(x)[0]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], second)
    compare(second, rnnjit.compile(fast, backend="eager")(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["LSTM", "Normed", "PeepholeLSTM"])
def test_weights_are_read_anew_at_each_call(cell):
    module = made(cell)
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(T, B, I).double()

    def check():
        with torch.no_grad():
            for _ in range(2):
                compare(fast(x), module(x))

    check()
    module.weight_hh_l0.data.mul_(0.5)
    check()
    values = {name: torch.randn_like(each) for name, each in module.named_parameters()}
    module.load_state_dict({**module.state_dict(), **values})
    check()
    for each in (module, fast):
        each.weight_ih_l0 = nn.Parameter(torch.zeros_like(values["weight_ih_l0"]))
    check()
    for each in (module, fast):
        weight_norm(each, "weight_hh_l0")
        each.parametrizations.weight_hh_l0.original0.data.fill_(2)
    check()
    compare(outcome(fast, x), outcome(module, x))


def test_buffers_are_read_anew_at_each_call():
    module = made("Normed")
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(T, B, I).double()
    assert fast.signs_l0 is module.signs_l0
    with torch.no_grad():
        before = fast(x)[0]
        module.signs_l0.neg_()
        compare(fast(x), module(x))
        assert not torch.equal(before, fast(x)[0])


def test_it_is_a_recurrent_that_shares_its_tensors_and_can_be_copied():
    module = made("PeepholeLSTM", num_layers=2)
    fast = rnnjit.compile(module, backend=Kept())
    assert isinstance(fast, rnnjit.Recurrent)
    assert repr(fast) == repr(module)
    assert [id(each) for each in fast.parameters()] == [id(each) for each in module.parameters()]
    assert list(fast.state_dict()) == list(module.state_dict())
    x = torch.randn(T, B, I).double()
    expected = fast(x)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    for each in (*copies, torch.load(file, weights_only=False)):
        assert type(each) is type(fast)
        compare(each(x), expected, rtol=0, atol=0)
        with torch.no_grad():
            each.p_l1.zero_()
        assert not torch.equal(each(x)[0], expected[0])
    compare(fast(x), expected, rtol=0, atol=0)
    inside = nn.Sequential(nn.Linear(I, I), rnnjit.Recurrent(LSTM(I, H)))
    compiled = rnnjit.compile(inside)
    x = torch.randn(T, B, I)
    compare(compiled(x), inside(x), rtol=1e-4, atol=1e-5)
    assert type(compiled[1]) is type(fast)
    assert rnnjit.compile(inside, inplace=True)[1] is inside[1]
    assert type(inside[1]) is type(fast)


class Mine(rnnjit.Recurrent):
    """A user's subclass, which calls the compiled forward by super()."""

    def forward(self, x):
        return super().forward(x)[0] * 2


def test_subclasses():
    module = Mine(LSTM(I, H))
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(T, B, I)
    compare(fast(x), module(x), rtol=1e-4, atol=1e-5)
    assert isinstance(fast, Mine)
    assert rnnjit.explain(fast, x).calls[0].problem.T == T


class Mixing(rnnjit.Cell):
    """A cell that no backend computes, in one mode."""

    def forward(self, x, h):
        h = torch.tanh(self.ih(x) + self.hh(h))
        return torch.cumsum(h, -1) if self.training else h


def test_cells_that_cannot_be_compiled_raise_at_compile():
    module = rnnjit.Recurrent(Mixing(I, H))
    x = torch.randn(T, B, I)
    for inplace in (False, True):
        with pytest.raises(rnnjit.CellError, match=r"cumsum"):
            rnnjit.compile(module, inplace=inplace)
    assert type(module) is rnnjit.Recurrent
    assert "cumsum" in str(rnnjit.explain(module, x))
    assert "cumsum" in str(rnnjit.explain(module))
    eager = rnnjit.compile(module, backend="eager")
    compare(eager(x), module(x), rtol=0, atol=0)
    fast = rnnjit.compile(module.eval())
    compare(fast(x), module(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(rnnjit.CellError, match=r"cumsum"):
        fast.train()(x)


class Declining(ReferenceBackend):
    """A backend that takes no call."""

    name = "declining"

    def why_not(self, spec, problem):
        return ["it does nothing"]


def test_a_named_backend_is_never_replaced():
    fast = rnnjit.compile(made("LeakyRNN"), backend=Declining())
    with pytest.raises(rnnjit.UnsupportedError, match="it does nothing"):
        fast(torch.randn(T, B, I).double())
    assert "declines: the call raises" in str(rnnjit.explain(fast, torch.randn(T, B, I).double()))


def test_explain_says_who_runs_each_layer():
    fast = rnnjit.compile(rnnjit.Recurrent(LeakyRNN(I, H), 2), backend=REFERENCE)
    x = torch.randn(T, B, I)
    first, second = rnnjit.explain(fast, x).calls
    assert (first.name, second.name) == ("module, layer 0", "module, layer 1")
    assert first.chosen == second.chosen == "reference"
    assert "random" in first.note
    assert "from x and draws for all steps: 1" in first.note
    (whole,) = rnnjit.explain(rnnjit.compile(rnnjit.Recurrent(LSTM(I, H), 2)), x).calls
    assert (whole.name, whole.problem.T, whole.problem.packed) == ("", T, False)
    reset = torch.ones(T, B, dtype=torch.bool)
    for call in rnnjit.explain(fast, x, None, reset).calls:
        assert (call.problem.T, call.problem.B, call.problem.packed) == (1, T * B, True)
    (loop,) = rnnjit.explain(rnnjit.compile(fast, backend="eager"), x).calls
    assert loop.chosen == "torch"
    assert "step by step" in loop.note
    (now,) = rnnjit.explain(rnnjit.Recurrent(LSTM(I, H)), x).calls
    assert now.note == "eager now; once compiled:"


def test_a_cell_alone_stays_as_it_is():
    model = nn.ModuleList([nn.LSTM(I, H), LSTM(I, H)])
    fast = rnnjit.compile(model)
    assert type(fast[1]) is LSTM
    assert "rnnjit.Recurrent" in str(rnnjit.explain(fast))
    with pytest.raises(ValueError, match=r"rnnjit.Recurrent"):
        rnnjit.compile(LSTM(I, H))


@pytest.mark.parametrize("cell", ["PeepholeLSTM", "LeakyRNN"])
def test_recomputing_gives_the_same(cell):
    module = rnnjit.Recurrent(CELLS[cell](I, 40), bidirectional=True).double()
    fast = rnnjit.compile(module, backend=Kept(), recompute=True)
    x = torch.randn(64, 20, I).double()
    compare(outcome(fast, x), outcome(module, x))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_backend_with_a_backward_pass_of_its_own(cell, stack):
    module = made(cell, **STACKS[stack])
    fast = rnnjit.compile(module, backend=Kept())
    given, named = arguments(module, "dense")
    expected = outcome(module, *given, **named)
    for _ in range(2):
        compare(outcome(fast, *given, **named), expected)


def test_results_may_be_changed_in_place():
    for cell in (LSTM, Normed, LeakyRNN, IndRNN, PeepholeLSTM):
        module = rnnjit.Recurrent(cell(I, H), 2).double()
        fast = rnnjit.compile(module, backend=Kept())
        x = torch.randn(T, B, I).double()
        grads = []
        for each in (module, fast):
            torch.manual_seed(0)
            y, h = each(x)
            last = h if isinstance(h, torch.Tensor) else h[0]
            total = (y * 2).sum() + last.sum()
            y.detach().zero_()
            grads.append(torch.autograd.grad(total, each.weight_ih_l0))
        compare(grads[1], grads[0])


def test_errors_of_calls_are_those_of_the_loop():
    module = rnnjit.Recurrent(LSTM(I, H))
    fast = rnnjit.compile(module)
    for call in (
        lambda m: m(torch.zeros(4, 2, I + 1)),
        lambda m: m(torch.zeros(4)),
        lambda m: m([1.0]),
        lambda m: m(torch.zeros(4, 2, I, dtype=torch.float64)),
        lambda m: m(torch.zeros(0, 2, I)),
        lambda m: m(torch.zeros(4, 2, I), torch.zeros(1, 2, H)),
        lambda m: m(torch.zeros(4, 2, I), None, torch.zeros(4, 3, dtype=torch.bool)),
        lambda m: m(torch.zeros(4, 2, I), reset_to=(torch.zeros(1, H), torch.zeros(1, H))),
    ):
        with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever the loop raises
            call(module)
        with pytest.raises(theirs.type) as ours:
            call(fast)
        assert str(ours.value) == str(theirs.value)


def test_a_weight_of_a_wrong_shape_is_an_error():
    fast = rnnjit.compile(rnnjit.Recurrent(LSTM(I, H)))
    fast.weight_hh_l0 = nn.Parameter(torch.zeros(4 * H, H + 1))
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 must have shape"):
        fast(torch.zeros(T, B, I))


def test_its_class_constructs_compiled_stacks():
    fast = rnnjit.compile(rnnjit.Recurrent(LSTM(I, H)), backend=REFERENCE)
    other = type(fast)(LSTM(I, H), 2)
    assert (other.backend, other.num_layers) == ("auto", 2)


def test_tools_take_it_beside_torchs_layers():
    model = nn.ModuleDict({"own": rnnjit.Recurrent(LSTM(I, H)), "rnn": nn.RNN(I, H)})

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["own"](x)[0] + self.parts["rnn"](x)[0]

    x = torch.randn(T, B, I)
    for module in (Both(), rnnjit.compile(Both(), backend=REFERENCE)):
        tuned = rnnjit.tune(module, x, rounds=1, backends=["eager"])
        assert [call.name for call in tuned.calls] == ["parts.own", "parts.rnn"]
        compared = rnnjit.compare(module, x, rounds=1, backends=["eager"]).calls
        assert list(compared) == ["parts.own", "parts.rnn"]


# Dynamo looks at it where it goes on after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("cell", [LSTM, LeakyRNN])
def test_graphs_break_at_it(cell):
    module = rnnjit.Recurrent(cell(I, H))
    fast = rnnjit.compile(module, backend=REFERENCE)
    whole = torch.compile(lambda x: fast(2 * x)[0] + 1, backend="eager")
    x = torch.randn(T, B, I)
    torch.manual_seed(1)
    found = whole(x)
    torch.manual_seed(1)
    compare(found, module(2 * x)[0] + 1, rtol=1e-5, atol=1e-6)
    strict = torch.compile(lambda x: fast(x)[0], backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="outside of graphs"):
        strict(x)
    torch._dynamo.reset()
