"""Protects compiled cells: one step of a layer, in every way that eager's cells are used."""

import copy
import pickle
import warnings

import pytest
import torch
from computing import computing, usual
from torch import nn

import rnnjit

B, I, H = 3, 4, 6
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
KINDS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
CELLS = [
    *((nn.RNNCell, options) for options in ({}, {"nonlinearity": "relu"}, {"bias": False})),
    *((nn.LSTMCell, options) for options in ({}, {"bias": False})),
    *((nn.GRUCell, options) for options in ({}, {"bias": 1})),
]
ROWS = [(kind, options, name) for kind, options in CELLS for name in computing(kind)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
# Dynamo warns of torch's own deprecations when it is first imported.
quiet = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")


def draw(*shape, grad=True):
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


def make(kind=nn.RNNCell, **options):
    torch.manual_seed(0)
    return kind(I, H, dtype=torch.float64, **options)


def pair(kind, **options):
    cell = make(kind, **options)
    return cell, rnnjit.compile(cell, backend=usual(kind))


def draw_state(kind, *batch):
    """A state in the form that a cell takes."""
    return (draw(*batch, H), draw(*batch, H)) if kind is nn.LSTMCell else draw(*batch, H)


def tensors(state):
    """The tensors of a state: none, one, or h and c."""
    return [] if state is None else list(state) if isinstance(state, (tuple, list)) else [state]


def with_gradients(module, *args, leaves):
    """The new state, and the gradients of a function of all of it."""
    state = module(*args)
    loss = sum((part * (1 + part).sin()).sum() for part in tensors(state))
    return state, torch.autograd.grad(loss, leaves)


def agree(function, cell, fast):
    torch.testing.assert_close(function(fast), function(cell), **CLOSE)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(B,), (1,), (0,), ()], ids=["batch", "one", "none", "unbatched"])
@pytest.mark.parametrize(("kind", "options", "backend"), ROWS)
def test_values_and_gradients(kind, options, backend, batch, given):
    cell = make(kind, **options)
    fast = rnnjit.compile(cell, backend=backend)
    x, hx = draw(*batch, I), draw_state(kind, *batch) if given else None
    leaves = [x, *tensors(hx), *cell.parameters()]
    for _ in range(2):  # the second call takes the short way
        agree(lambda module: with_gradients(module, x, hx, leaves=leaves), cell, fast)
        with torch.no_grad():
            agree(lambda module: module(x, hx), cell, fast)


def leaf(tensor):
    """A copy that autograd takes for an input: torch.compile warns of others."""
    return tensor.detach().clone().requires_grad_()


FORMS = {
    "a list": lambda m, x, h, c: m(x, [h, c]),
    "keywords": lambda m, x, h, c: m(hx=(h, c), input=x),
    "one of the gradients": lambda m, x, h, c: m(x, (h.detach(), c)),
    "unbatched, stacked": lambda m, x, h, c: m(leaf(x[0]), leaf(torch.stack([h[0], c[0]]))),
    "unbatched, more than torch reads": lambda m, x, h, c: m(
        *(leaf(x[0]), (leaf(h[0]), leaf(c[0]), leaf(h[0])))
    ),
    "c of another dtype": lambda m, x, h, c: m(x, (h, leaf(c.float()))),
    "c of integers": lambda m, x, h, c: m(x, (h, c.long())),
}


@quiet
@pytest.mark.parametrize("traced", [False, True], ids=["called", "traced"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_two_states(form, traced):
    cell, fast = pair(nn.LSTMCell)
    x, (h, c) = draw(B, I), draw_state(nn.LSTMCell, B)
    if traced:
        torch._dynamo.reset()
        fast = torch.compile(fast, backend="eager", fullgraph=True)
    for _ in range(2):
        agree(lambda module: FORMS[form](module, x, h, c), cell, fast)
    assert type(FORMS[form](fast, x, h, c)) is tuple


@every_kind
def test_keyword_calls(kind):
    cell, fast = pair(kind)
    x, hx = draw(B, I), draw_state(kind, B)
    agree(lambda module: (module(input=x), module(x, hx=hx), module(hx=hx, input=x)), cell, fast)


@every_kind
def test_a_loop_over_steps(kind):
    cell, fast = pair(kind)
    x = draw(9, B, I)

    def last(module):
        state = None
        for frame in x:
            state = module(frame, state)
        loss = sum(part.square().sum() for part in tensors(state))
        return state, torch.autograd.grad(loss, [x, *cell.parameters()])

    agree(last, cell, fast)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@every_kind
def test_every_dtype_that_eager_takes(kind, dtype):
    cell = make(kind).to(dtype)
    fast, x = rnnjit.compile(cell, backend=usual(kind)), draw(B, I, grad=False).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    if dtype in (torch.bfloat16, torch.float16):  # two roundings of numbers below 1
        tolerance = {"rtol": 0, "atol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(fast(x), cell(x), **tolerance)


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_it_shares_parameters_and_looks_like_the_cell(kind, options):
    cell, fast = pair(kind, **options)
    assert repr(fast) == repr(cell)
    assert fast.weight_hh is cell.weight_hh
    assert list(fast.state_dict()) == list(cell.state_dict())
    assert isinstance(fast, kind)
    x = draw(B, I)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(again) is type(fast)
        torch.testing.assert_close(again(x), cell(x), **CLOSE)
        assert again.weight_hh is not cell.weight_hh
    other = kind(I, H, dtype=torch.float64, **options)
    fast.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast(x), other(x), **CLOSE)


class Decoder(nn.Module):
    """A layer, and each kind of cell: nested, in a list, and one of them twice."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(I, H, dtype=torch.float64)
        self.cells = nn.ModuleList([make(), nn.Sequential(make(nn.GRUCell))])
        self.lstm = make(nn.LSTMCell)
        self.again = self.lstm

    def forward(self, x):
        y, _ = self.rnn(x)
        h, c = y[-1], y[0]
        for frame in x:
            h = self.cells[0](frame, h)
            h = self.cells[1][0](frame, h)
            h, c = self.lstm(frame, (h, c))
            h, c = self.again(frame, [h, c])
        return h, c


def compiled_decoder():
    model = Decoder()
    wanted = "auto" if all(usual(kind) == "auto" for kind in KINDS) else "eager"
    return model, rnnjit.compile(model, backend=wanted)


@quiet
def test_cells_in_a_model_beside_layers():
    model, fast = compiled_decoder()
    x = draw(5, B, I)
    agree(lambda module: module(x), model, fast)
    assert fast.again is fast.lstm
    assert type(model.lstm) is nn.LSTMCell
    names = [type(m).__name__ for m in (fast.cells[0], fast.cells[1][0], fast.lstm)]
    assert names == ["CompiledRNNCell", "CompiledGRUCell", "CompiledLSTMCell"]
    explained = rnnjit.explain(fast, x)
    assert [call.name for call in explained.calls] == ["rnn", "cells.0", "cells.1.0", "lstm"]
    assert all(call.chosen for call in explained.calls)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    leaves = [x, *model.parameters()]

    def run(module):
        h, c = module(x)
        return h, c, torch.autograd.grad((h * c).sum(), leaves)

    agree(run, model, traced)


@quiet
@every_kind
def test_in_graphs_that_torch_traced(kind):
    torch._dynamo.reset()
    cell, fast = pair(kind)
    x, hx = draw(B, I), draw_state(kind, B)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    leaves = [x, *tensors(hx), *cell.parameters()]
    agree(lambda module: with_gradients(module, x, hx, leaves=leaves), cell, traced)
    for args in ((x,), (draw(I),), (draw(I), draw_state(kind))):
        agree(lambda module, args=args: module(*args), cell, traced)
    exported = torch.export.export(fast, (x, hx)).module()
    agree(lambda module: module(x, hx), cell, exported)


@every_kind
def test_hooks_see_what_they_saw(kind):
    cell, fast = pair(kind)
    x, hx, seen = draw(B, I), draw_state(kind, B), []
    for module in (cell, fast):
        module.register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
        module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    agree(lambda module: module(x, hx), cell, fast)
    torch.testing.assert_close(seen[1], seen[0], **CLOSE)


@every_kind
def test_subclasses_run_their_own_code(kind):
    class Twice(kind):
        def forward(self, x, state=None):
            return super().forward(x, super().forward(x, state))

        def sizes(self):
            return self.input_size, self.hidden_size

    cell = Twice(I, H, dtype=torch.float64)
    fast, x = rnnjit.compile(cell, backend=usual(kind)), draw(B, I)
    assert isinstance(fast, Twice)
    assert isinstance(fast, type(rnnjit.compile(kind(1, 1), backend=usual(kind))))
    assert fast.sizes() == (I, H)
    agree(lambda module: module(x), cell, fast)


@every_kind
def test_settings_and_weights_are_read_at_every_call(kind):
    cell, fast = pair(kind)
    x = draw(B, I)
    fast(x)
    with torch.no_grad():
        cell.weight_ih.mul_(2)
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)
    fast.weight_hh = cell.weight_hh = nn.Parameter(cell.weight_hh.detach() + 1)
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)
    fast.nonlinearity = cell.nonlinearity = "relu"
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)


@every_kind
def test_transforms_double_backward_and_autocast(kind):
    cell, fast = pair(kind)
    x, hx = draw(B, I), draw_state(kind, B)
    assert torch.autograd.gradgradcheck(lambda x: fast(x), (x,))
    agree(lambda module: torch.func.jacrev(module)(x), cell, fast)
    weights = {name: 2 * value for name, value in cell.named_parameters()}
    agree(lambda module: torch.func.functional_call(module, weights, (x, hx)), cell, fast)
    single = cell.float()
    fast_single = rnnjit.compile(single, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = fast_single(x.float()), single(x.float())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_kind
def test_per_sample_states_under_vmap(kind):
    cell, fast = pair(kind)
    x, hx = draw(5, B, I), draw_state(kind, 5, B)
    mapped = torch.func.vmap(fast)(x, hx)
    for index in range(5):  # torch cannot map its own nn.LSTMCell
        own = tuple(part[index] for part in tensors(hx))
        alone = cell(x[index], own if len(own) > 1 else own[0])
        found = [part[index] for part in tensors(mapped)]
        torch.testing.assert_close(found, tensors(alone), **CLOSE)


@every_kind
def test_in_graphs_of_torch_fx_and_traces_of_torch_jit(kind):
    class Around(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, x, hx):
            new = self.cell(x, hx)
            return new[0] + 1

    cell, fast = pair(kind)
    x, hx = draw(B, I), draw_state(kind, B)
    graph = torch.fx.symbolic_trace(Around(fast))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["cell"]
    torch.testing.assert_close(graph(x, hx), Around(cell)(x, hx), **CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(Around(fast), (x, hx))
    torch.testing.assert_close(traced(x, hx), Around(cell)(x, hx), **CLOSE)


@every_kind
def test_a_new_state_may_be_changed_in_place(kind):
    _, fast = pair(kind)
    for grad in (False, True):
        for part in tensors(fast(draw(B, I, grad=grad))):
            part.detach_()
            part.mul_(2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if usual(kind) == "auto"])
def test_tuning(kind):
    fast = rnnjit.compile(make(kind))
    call, *others = rnnjit.tune(fast, draw(B, I), draw_state(kind, B), rounds=1).calls
    assert not others
    assert {"numba", "eager"} <= call.seconds.keys()
    assert call.failures == {}


BAD = {
    "rank": lambda h: (draw(1, B, I),),
    "features": lambda h: (draw(B, I + 1),),
    "dtype": lambda h: (draw(B, I).float(),),
    "hx rank": lambda h: (draw(B, I), h(1, 1, H)),
    "hx batch": lambda h: (draw(B, I), h(B + 1, H)),
    "hx features": lambda h: (draw(B, I), h(B, H + 1)),
    "hx unbatched": lambda h: (draw(B, I), h(H)),
    "kind": lambda h: ([1.0],),
}


@pytest.mark.parametrize("what", BAD)
@every_kind
def test_what_eager_rejects_is_rejected_alike(kind, what):
    cell, fast = pair(kind)

    def state(*shape):
        return (draw(*shape), draw(*shape)) if kind is nn.LSTMCell else draw(*shape)

    args = BAD[what](state)
    with pytest.raises(Exception) as eager:  # noqa: PT011 - which one is the question
        cell(*args)
    with pytest.raises(type(eager.value)):
        fast(*args)
    x = draw(B, I)
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)
