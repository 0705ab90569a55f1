"""Protects compiled nn.LSTM and nn.GRU as drop-ins: all that a model does with them but calling."""

import copy
import io
import pickle

import pytest
import torch
from computing import usual
from torch import nn
from torch.nn.utils import parametrizations, prune

import rnnjit

T, B, I, H = 4, 3, 2, 5
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
    (nn.GRU, {"bias": False}),
]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=["LSTM", "projected", "GRU"])
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Model(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(I, H, dtype=torch.float64, **options)
        self.head = nn.LazyLinear(2, dtype=torch.float64)

    def forward(self, x, hx=None):
        y, last = self.rnn(x, hx)
        return self.head(y), last


def pair(kind, options):
    torch.manual_seed(0)
    model = Model(kind, **options)
    model(draw())
    return model, rnnjit.compile(model, backend=usual(kind))


def draw(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, I, dtype=torch.float64, generator=generator)


def agree(function, model, fast):
    torch.testing.assert_close(function(fast), function(model), **CLOSE)


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every_kind
def test_it_is_what_it_was(kind, options):
    model, fast = pair(kind, options)
    assert isinstance(fast.rnn, kind)
    assert not isinstance(fast.rnn, nn.RNN)
    assert (fast.rnn.__class__, type(model.rnn)) == (kind, kind)
    assert repr(fast) == repr(model)
    assert fast.rnn.mode == model.rnn.mode
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    assert fast.rnn.all_weights == model.rnn.all_weights


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
@every_kind
def test_copies(kind, options, copied):
    model, fast = pair(kind, options)
    other, x = copied(fast), draw()
    assert type(other.rnn) is type(fast.rnn)
    agree(lambda module: module(x), model, other)


@every_kind
def test_weights_of_another_model_are_loaded(kind, options):
    model, fast = pair(kind, options)
    other, x = Model(kind, **options), draw()
    other(x)
    fast.load_state_dict(other.state_dict())
    agree(lambda module: module(x), other, fast)
    agree(lambda module: module(x), other, model)  # they are shared
    state = pickle.loads(pickle.dumps(fast.state_dict()))
    fresh = Model(kind, **options)
    fresh(x)
    fresh.load_state_dict(state)
    agree(lambda module: module(x), other, fresh)


@every_kind
def test_hooks(kind, options):
    model, fast = pair(kind, options)
    seen = {id(model): [], id(fast): []}
    for whole in (model, fast):
        found, rnn = seen[id(whole)], whole.rnn
        rnn.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
        rnn.register_forward_hook(lambda module, args, out, found=found: found.append(out[0]))
        rnn.register_forward_hook(lambda module, args, out: (2 * out[0], out[1]))
        rnn.register_full_backward_hook(
            lambda module, grads, _, found=found: found.append(grads[0])
        )
        rnn.register_state_dict_pre_hook(
            lambda module, prefix, keep, found=found: found.append(prefix)
        )
        whole(draw().requires_grad_())[0].sum().backward()
        found.append(list(whole.state_dict()))
    ours, theirs = seen[id(fast)], seen[id(model)]
    torch.testing.assert_close(ours[:2], theirs[:2], **CLOSE)
    assert ours[2:] == theirs[2:]
    assert len(ours) == 4


@every_kind
def test_an_optimizer_trains_both(kind, options):
    model, fast = pair(kind, options)
    twin = copy.deepcopy(model)
    x, losses = draw(), []
    for module in (fast, twin):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = module(x)[0].square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-9)
    agree(lambda module: module(x), model, fast)


@every_kind
def test_conversions(kind, options):
    model, fast = pair(kind, options)
    x = draw().float()
    fast.float()
    assert fast.rnn.weight_hh_l0.dtype is torch.float32
    torch.testing.assert_close(fast(x), model(x))
    fast.requires_grad_(False).eval()
    assert not fast(x)[0].requires_grad


SURGERY = {
    "weight_norm": lambda rnn: parametrizations.weight_norm(rnn, "weight_hh_l0"),
    "orthogonal": lambda rnn: parametrizations.orthogonal(rnn, "weight_ih_l0"),
    "pruning": lambda rnn: prune.l1_unstructured(rnn, "weight_hh_l0", amount=0.5),
    "another weight": lambda rnn: setattr(
        rnn, "weight_hh_l0", nn.Parameter(rnn.weight_hh_l0.detach() * 2)
    ),
    "flatten_parameters": lambda rnn: rnn.flatten_parameters(),
}


@pytest.mark.parametrize("name", SURGERY)
@every_kind
def test_surgery(kind, options, name):
    model, _ = pair(kind, options)
    twin, x = copy.deepcopy(model), draw()
    fast = rnnjit.compile(copy.deepcopy(model), backend=usual(kind), inplace=True)
    fast(x)  # so that there is a short way with the weights before
    for module in (twin, fast):
        torch.manual_seed(2)
        SURGERY[name](module.rnn)
    before = rnnjit.compile(twin, backend=usual(kind))
    for module in (fast, before):
        agree(lambda each: each(x), twin, module)
        agree(lambda each: each(x), twin, module)


@every_kind
def test_torch_func_and_data_parallel_replicas(kind, options):
    model, fast = pair(kind, options)
    x = draw()
    weights = {name: value.detach() * 2 for name, value in model.named_parameters()}

    def loss(module):
        return lambda weights: torch.func.functional_call(module, weights, (x,))[0].sum()

    agree(lambda module: torch.func.grad(loss(module))(weights), model, fast)
    agree(lambda module: nn.DataParallel(module)(x), model, fast)


@every_kind
def test_states_go_from_call_to_call(kind, options):
    """Truncated backpropagation: the states of one call, detached, start the next."""
    model, fast = pair(kind, options)
    x, found = draw(), []
    for module in (fast, model):
        state, outputs = None, []
        for part in (x, x + 1, x - 1):
            y, state = module(part, state)
            outputs.append(y)
            state = [s.detach() for s in state] if kind is nn.LSTM else state.detach()
        found.append(outputs)
    torch.testing.assert_close(*found, **CLOSE)
