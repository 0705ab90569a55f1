"""Protects compiled nn.LSTM and nn.GRU against torch, in float64.

`recompute` goes through the contract's `forward` and `backward`, `reference` is recorded by
autograd, `eager` calls torch's own layers; beside them the backend that `auto` prefers.
"""

import copy
import pickle

import pytest
import torch
from computing import computing, usual
from covered import covered, in_turn
from eager_pair import CLOSE
from torch import nn
from torch.autograd import gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit
from rnnjit.reference import ReferenceBackend
from rnnjit.testing import RecomputeBackend

T, B, I, H = 4, 3, 3, 4
BACKENDS = [ReferenceBackend(), RecomputeBackend(), *{"eager": 0, computing(nn.LSTM)[0]: 0}]
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
PROJECTED = [
    {"proj_size": 2},
    {"proj_size": 2, "bias": False, "batch_first": True},
    {"proj_size": 3, "num_layers": 2, "bidirectional": True},
]
LAYERS = [
    *((nn.LSTM, options) for options in (*OPTIONS, *PROJECTED)),
    *((nn.GRU, options) for options in OPTIONS),
]
FORMS = ["dense", "unbatched", "sorted", "unsorted"]

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
FEW_LAYERS = [(nn.LSTM, {}), (nn.LSTM, {"proj_size": 2, "bidirectional": True}), (nn.GRU, {})]


def name_of(value):
    """Of a backend, a form or a layer."""
    if isinstance(value, tuple):
        return "-".join([value[0].__name__, *map(str, value[1].items())])
    return getattr(value, "name", str(value))


every_combination = pytest.mark.parametrize(
    ("backend", "form", "layer"), covered(BACKENDS, FORMS, LAYERS), ids=name_of
)
every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=name_of)
few_layers = pytest.mark.parametrize(
    ("make", "options"), FEW_LAYERS, ids=["LSTM", "LSTM-projected", "GRU"]
)
# Dynamo warns of torch's own deprecations when it is first imported.
quiet = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def arguments(rnn, form, *, state):
    """The input `[T, B, I]` in a form, and the states h and c in the form of `rnn`, or None."""
    torch.manual_seed(1)
    if form == "unbatched":
        x, batch = draw(T, I), ()
    else:
        x, batch = draw(*((B, T) if rnn.batch_first else (T, B)), I), (B,)
    if not state:
        return x, None
    count = rnn.num_layers * (1 + rnn.bidirectional)
    h = draw(count, *batch, rnn.proj_size or H)
    return x, ((h, draw(count, *batch, H)) if rnn.mode == "LSTM" else h)


def given(rnn, form, x):
    """What the module is called with: `x`, or a packed part of it."""
    lengths = {"sorted": [4, 3, 1], "unsorted": [2, 4, 3]}.get(form)
    if lengths is None:
        return x
    return pack_padded_sequence(
        x, torch.tensor(lengths), rnn.batch_first, enforce_sorted=form == "sorted"
    )


def states(hx):
    return () if hx is None else hx if isinstance(hx, tuple) else (hx,)


def outputs(module, x, hx):
    """Y, h_n and, of an LSTM, c_n."""
    y, last = module(x, hx)
    return y.data if isinstance(y, PackedSequence) else y, *states(last)


def losses(found):
    """What gradients may come from: each output alone, and all of them."""
    parts = [(output * (1 + output).sin()).sum() for output in found]
    return [*parts, sum(parts)]


def gradients(module, form, x, hx):
    leaves = (x, *states(hx), *module.parameters())
    return [
        torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        for loss in losses(outputs(module, given(module, form, x), hx))
    ]


def second_gradients(module, form, x, hx):
    leaves = (x, *states(hx), *module.parameters())
    loss = losses(outputs(module, given(module, form, x), hx))[-1]
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    penalty = sum((grad**2).sum() for grad in first)
    return torch.autograd.grad(penalty, leaves, materialize_grads=True)


def pair(make, options, backend):
    torch.manual_seed(0)
    rnn = make(I, H, dtype=torch.float64, **options)
    return rnn, rnnjit.compile(rnn, backend=backend)


def agree(function, rnn, fast):
    torch.testing.assert_close(function(fast), function(rnn), **CLOSE)


@every_combination
def test_values_and_gradients(backend, form, layer):
    rnn, fast = pair(*layer, backend)
    assert fast.state_dict().keys() == rnn.state_dict().keys()
    for state in (False, True):
        x, hx = arguments(rnn, form, state=state)
        for _ in range(2):  # on the full path, and where there is one on the fast path
            agree(lambda module, x=x, hx=hx: gradients(module, form, x, hx), rnn, fast)
            with torch.no_grad():
                agree(lambda module, x=x, hx=hx: module(given(rnn, form, x), hx), rnn, fast)


@every_combination
def test_double_backward(backend, form, layer):
    rnn, fast = pair(*layer, backend)
    x, hx = arguments(rnn, form, state=True)
    agree(lambda module: second_gradients(module, form, x, hx), rnn, fast)


@every_backend
@few_layers
def test_gradients_of_gradients_by_finite_differences(make, options, backend):
    rnn, fast = pair(make, options, backend)
    x, hx = arguments(rnn, "dense", state=True)
    names = [name for name, _ in rnn.named_parameters()]

    def function(x, *rest):
        count = len(states(hx))
        given_states = rest[:count] if count > 1 else rest[0]
        weights = dict(zip(names, rest[count:], strict=True))
        return outputs(lambda *args: functional_call(fast, weights, args), x, given_states)

    short = [state[:, :1].detach().requires_grad_() for state in states(hx)]
    x = x[:2, :1].detach().requires_grad_()
    assert gradgradcheck(function, (x, *short, *rnn.parameters()))


@every_backend
@few_layers
def test_some_gradients_need_not_be_computed(make, options, backend):
    rnn, fast = pair(make, options, backend)
    x, hx = arguments(rnn, "dense", state=True)
    frozen = {"weight_ih_l0", "bias_hh_l0", "weight_hr_l0"}
    for name, parameter in rnn.named_parameters():
        parameter.requires_grad_(name not in frozen)
    *first, last = states(hx)
    hx = (*(state.detach() for state in first), last) if first else last
    x = x.detach()
    leaves = [last, *(p for p in rnn.parameters() if p.requires_grad)]

    def some(module):
        loss = losses(outputs(module, x, hx))[-1]
        return torch.autograd.grad(loss, leaves)

    agree(some, rnn, fast)


@every_backend
@few_layers
def test_dropout_draws_what_eager_draws(make, options, backend):
    rnn, fast = pair(make, {**options, "num_layers": 3, "dropout": 0.4}, backend)
    x, hx = arguments(rnn, "dense", state=True)

    def seeded(module):
        torch.manual_seed(2)
        return gradients(module, "dense", x, hx)

    agree(seeded, rnn, fast)
    rnn.eval(), fast.eval()
    agree(lambda module: module(x, hx), rnn, fast)


@quiet
@pytest.mark.parametrize(("backend", "layer"), in_turn(BACKENDS, FEW_LAYERS), ids=name_of)
def test_in_a_graph_that_torch_traced(backend, layer):
    torch._dynamo.reset()
    make, options = layer
    rnn, fast = pair(make, {**options, "num_layers": 2}, backend)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for state in (False, True):
        x, hx = arguments(rnn, "dense", state=state)
        leaves = (x, *states(hx), *rnn.parameters())

        def both(module, x=x, hx=hx, leaves=leaves):
            found = outputs(module, x, hx)
            return found, torch.autograd.grad(losses(found)[-1], leaves)

        agree(both, rnn, traced)


@every_backend
@few_layers
def test_under_a_transform(make, options, backend):
    rnn, fast = pair(make, options, backend)
    x, hx = arguments(rnn, "dense", state=True)
    samples = torch.stack([x, x + 1, -x]).detach()
    mapped = torch.func.vmap(lambda sample: outputs(fast, sample, hx))(samples)
    for index, sample in enumerate(samples):
        alone = outputs(rnn, sample, hx)
        torch.testing.assert_close([part[index] for part in mapped], list(alone), **CLOSE)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # flags() of oneDNN sets this, too
@pytest.mark.usefixtures("onednn_where_it_runs")
@few_layers
def test_autocast_runs_torch_s_own_layer(make, options):
    rnn = make(I, H, **options)
    fast, x = rnnjit.compile(rnn, backend="eager"), torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(fast(x), rnn(x), rtol=0, atol=0)


@every_backend
@few_layers
def test_copies_go_on(make, options, backend):
    rnn, fast = pair(make, options, backend)
    x, hx = arguments(rnn, "dense", state=True)
    copies = [copy.deepcopy(fast)]
    copies += [pickle.loads(pickle.dumps(fast))] if isinstance(backend, str) else []
    for module in copies:
        assert type(module) is type(fast)
        agree(lambda each: each(x, hx), rnn, module)


@every_backend
@few_layers
def test_resets_cut_the_sequences(make, options, backend):
    if options.get("bidirectional"):
        options = {**options, "bidirectional": False}
    rnn, fast = pair(make, options, backend)
    x, hx = arguments(rnn, "dense", state=True)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 1] = reset[0, 2] = True
    y, last = fast(x, hx, reset=reset)
    zeros = [torch.zeros_like(state) for state in states(hx)]
    for b, start in enumerate((0, 2, 0)):
        own = states(hx) if b == 0 else zeros
        own = tuple(state[:, b : b + 1].contiguous() for state in own)
        part, expected = rnn(x[start:, b : b + 1], own if len(own) > 1 else own[0])
        torch.testing.assert_close(y[start:, b : b + 1], part, **CLOSE)
        found = [state[:, b : b + 1] for state in states(last)]
        torch.testing.assert_close(found, list(states(expected)), **CLOSE)


@every_backend
def test_all_layers_in_one_model(backend):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(I, H, dtype=torch.float64)
            self.lstm = nn.LSTM(H, H, proj_size=2, dtype=torch.float64)
            self.gru = nn.Sequential(nn.GRU(2, H, dtype=torch.float64))

        def forward(self, x):
            y, _ = self.lstm(self.rnn(x)[0])
            return self.gru(y)

    model = Mixed()
    fast, x = rnnjit.compile(model, backend=backend), draw(T, B, I)
    found = [type(each).__name__ for each in (fast.rnn, fast.lstm, fast.gru[0])]
    assert found == ["CompiledRNN", "CompiledLSTM", "CompiledGRU"]
    assert isinstance(fast.lstm, nn.LSTM)
    assert repr(fast) == repr(model)
    leaves = [x, *model.parameters()]

    def run(module):
        y, h = module(x)
        return y, h, torch.autograd.grad((y * y).sum() + h.sum(), leaves)

    agree(run, model, fast)
    names = [name for name, backend in rnnjit.backends().items() if not backend.missing()]
    chosen = [call.chosen for call in rnnjit.explain(fast, x).calls]
    assert all(name in (*names, getattr(backend, "name", None)) for name in chosen)


FORMS_OF_STATES = {
    "a list": lambda module, x, h, c: module(x, [h, c]),
    "keywords": lambda module, x, h, c: module(hx=(h, c), input=x),
    "keywords and a list": lambda module, x, h, c: module(input=x, hx=[h, c]),
    "unbatched, stacked": lambda module, x, h, c: module(x[:, 0], torch.stack([h, c])[:, :, 0]),
}


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("form", FORMS_OF_STATES)
@every_backend
def test_forms_of_two_states(form, backend, packed):
    rnn, fast = pair(nn.LSTM, {"num_layers": 2}, backend)
    x, hx = arguments(rnn, "dense", state=True)
    if packed and "unbatched" not in form:
        x = given(rnn, "unsorted", x)
    for _ in range(2):
        found = []
        for module in (fast, rnn):
            y, last = FORMS_OF_STATES[form](module, x, *hx)
            assert type(last) is tuple
            found.append((getattr(y, "data", y), *last))
        torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@few_layers
def test_every_dtype_that_eager_takes(make, options, dtype):
    torch.manual_seed(0)
    rnn = make(I, H, **options).to(dtype)
    fast, x = rnnjit.compile(rnn, backend=usual(make)), torch.randn(T, B, I).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    if dtype in (torch.bfloat16, torch.float16):  # every step rounds numbers below 1
        tolerance = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps}
    with torch.no_grad():
        torch.testing.assert_close(outputs(fast, x, None), outputs(rnn, x, None), **tolerance)


H0 = torch.zeros(2, B, H)


@pytest.mark.parametrize(
    ("hx", "error", "message"),
    [
        (H0, RuntimeError, r"hx must be a tuple of 2 states \(h, c\), got Tensor"),
        ((H0, H0, H0), RuntimeError, "hx must be a tuple of 2 states, got 3"),
        ((H0, None), AttributeError, r"hx\[1\] must be a Tensor, got NoneType"),
        (3, TypeError, r"hx must be a tuple of 2 states \(h, c\), got int"),
        (
            (H0, torch.zeros(2, B, H + 1)),
            RuntimeError,
            r"hx\[1\] must have shape \[2, 3, 4\] .*, got \[2, 3, 5\]",
        ),
        (
            (torch.zeros(2, 1, H), H0),
            RuntimeError,
            r"hx\[0\] must have shape \[2, 3, 4\] .*, got \[2, 1, 4\]",
        ),
        ((H0, H0[0]), RuntimeError, r"hx\[1\] must be 3-D like the batched input, got 2-D"),
    ],
)
def test_states_that_do_not_fit(hx, error, message):
    rnn = nn.LSTM(I, H, 2)
    fast, x = rnnjit.compile(rnn, backend="eager"), torch.randn(T, B, I)
    fast(x)
    with pytest.raises(Exception) as eagers:  # noqa: PT011 - whatever it is, it is compared below
        rnn(x, hx)
    with pytest.raises(error, match=message) as ours:
        fast(x, hx)
    assert ours.type is eagers.type
    torch.testing.assert_close(fast(x), rnn(x))
