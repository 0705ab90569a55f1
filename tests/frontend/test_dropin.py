"""Protects a compiled RNN as a module: state, hooks, copies, conversions, surgery."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnjit

CONFIGS = [
    {},
    {"nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
]


class WithMethod(nn.RNN):
    def doubled(self, x):
        return 2 * self(x)[0]


def pair(**config):
    torch.manual_seed(0)
    rnn = nn.RNN(3, 4, **config)
    return rnn, rnnjit.compile(rnn, backend="eager")


def assert_same(fast, rnn, dtype=torch.float32):
    x = torch.randn(5, 2, 3, dtype=dtype)
    for got, expected in zip(fast(x), rnn(x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_state_repr_and_attributes(config):
    rnn, fast = pair(**config)
    assert list(fast.state_dict()) == list(rnn.state_dict())
    assert repr(fast) == repr(rnn)
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in rnn.named_parameters()]
    for name in (*nn.RNN.__constants__, "nonlinearity", "training"):
        assert getattr(fast, name) == getattr(rnn, name)
    assert [[id(w) for w in ws] for ws in fast.all_weights] == [
        [id(w) for w in ws] for ws in rnn.all_weights
    ]
    assert fast.flatten_parameters() is None


def test_repr_of_a_model_is_the_original_models():
    model = nn.Sequential(nn.RNN(3, 4, 2), nn.Linear(4, 1))
    assert repr(rnnjit.compile(model)) == repr(model)


def test_all_kinds_of_hooks_run():
    rnn, _ = pair()
    seen = []
    rnn.register_forward_pre_hook(lambda m, a, k: seen.append(("pre", sorted(k))), with_kwargs=True)
    rnn.register_forward_hook(
        lambda m, a, k, o: seen.append(("forward", sorted(k))), with_kwargs=True
    )
    fast = rnnjit.compile(rnn)
    fast.register_full_backward_pre_hook(lambda m, g: seen.append("backward pre"))
    fast.register_full_backward_hook(lambda m, gi, go: seen.append(("backward", len(gi))))
    fast.register_state_dict_pre_hook(lambda *_: seen.append("state pre"))
    fast.register_state_dict_post_hook(lambda *_: seen.append("state post"))
    fast.register_load_state_dict_pre_hook(lambda *_: seen.append("load pre"))
    fast.register_load_state_dict_post_hook(lambda *_: seen.append("load post"))
    y, _ = fast(torch.randn(2, 1, 3, requires_grad=True), hx=torch.zeros(1, 1, 4))
    y.sum().backward()
    fast.load_state_dict(fast.state_dict())
    expected = [("pre", ["hx"]), ("forward", ["hx"]), "backward pre", ("backward", 1)]
    assert seen == [*expected, "state pre", "state post", "load pre", "load post"]


def test_forward_hooks_may_change_input_and_output():
    rnn, fast = pair()
    for module in (rnn, fast):
        module.register_forward_pre_hook(lambda m, args: (2 * args[0],))
        module.register_forward_hook(lambda m, args, output: (output[0] - 1, output[1]))
    assert_same(fast, rnn)


def test_always_call_hooks_run_when_the_call_fails():
    _, fast = pair()
    seen = []
    fast.register_forward_hook(lambda *_: seen.append(1), always_call=True)
    with pytest.raises(ValueError, match="input must be"):
        fast(torch.zeros(3))
    assert seen == [1]


def through_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), through_save],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("cls", [nn.RNN, WithMethod])
def test_copies_work_and_keep_their_backend(copied, cls):
    torch.manual_seed(0)
    rnn = cls(3, 4)
    fast = rnnjit.compile(nn.Sequential(rnn), backend="eager")
    x = torch.randn(5, 2, 3)
    fast(x)
    other = copied(fast)[0]
    assert type(other) is type(fast[0])
    assert other.backend == "eager"
    assert torch.equal(other(x)[0], rnn(x)[0])
    if copied is not copy.copy:
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert_same(fast[0], rnn)
    if cls is WithMethod:
        assert torch.equal(fast[0].doubled(x), rnn.doubled(x))


def test_a_backend_given_as_an_object_is_shared_by_copies():
    backend = rnnjit.backends()["eager"]
    fast = rnnjit.compile(nn.RNN(3, 4), backend=backend)
    assert copy.deepcopy(fast).backend is backend


@pytest.mark.parametrize(
    "convert", [lambda m: m.double(), lambda m: m.to(torch.float64)], ids=["double", "to"]
)
def test_conversion_of_the_dtype(convert):
    rnn, fast = pair(num_layers=2)
    convert(fast)
    assert fast.weight_hh_l1.dtype == rnn.weight_hh_l1.dtype == torch.float64
    assert_same(fast, rnn, torch.float64)


def test_meta_and_to_empty():
    rnn, _ = pair()
    fast = rnnjit.compile(copy.deepcopy(rnn).to("meta"), backend="auto")
    y, h = fast(torch.empty(5, 2, 3, device="meta"))
    assert (y.shape, h.shape, y.device.type) == ((5, 2, 4), (1, 2, 4), "meta")
    fast.to_empty(device="cpu")
    fast.load_state_dict(rnn.state_dict())
    fast.backend = "eager"
    assert_same(fast, rnn)


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(assign):
    rnn, _ = pair(num_layers=2)
    other = rnnjit.compile(nn.RNN(3, 4, 2), backend="eager")
    other(torch.randn(2, 1, 3))
    assert str(other.load_state_dict(rnn.state_dict(), assign=assign)) == (
        "<All keys matched successfully>"
    )
    assert_same(other, rnn)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_checkpoints_are_exchangeable_with_eager_under_weights_only(tmp_path):
    _, fast = pair(num_layers=2)
    torch.save(fast.state_dict(), tmp_path / "fast.pt")
    plain = nn.RNN(3, 4, 2)
    plain.load_state_dict(torch.load(tmp_path / "fast.pt", weights_only=True))
    assert_same(fast, plain)


def test_the_usual_module_methods():
    _, fast = pair()
    seen = []
    fast.apply(seen.append)
    assert seen == [fast]
    assert fast.eval().training is False
    assert fast.train().training is True
    fast(torch.randn(2, 1, 3))[0].sum().backward()
    assert fast.weight_hh_l0.grad is not None
    fast.zero_grad()
    assert fast.weight_hh_l0.grad is None
    fast.requires_grad_(False)
    assert not fast(torch.randn(2, 1, 3))[0].requires_grad
    assert fast.share_memory().weight_hh_l0.is_shared()
    assert fast.half().weight_hh_l0.dtype == torch.float16


def test_dropout_may_be_switched_off_after_compiling():
    rnn, fast = pair(num_layers=2, dropout=0.9)
    x = torch.randn(5, 2, 3)
    rnn.dropout = fast.dropout = 0
    assert torch.equal(fast(x)[0], rnn(x)[0])
    assert torch.equal(fast(x)[0], fast(x)[0])


def test_weight_norm_before_compiling():
    rnn, _ = pair()
    parametrizations.weight_norm(rnn, "weight_hh_l0")
    fast = rnnjit.compile(rnn, backend="eager")
    assert isinstance(fast, rnnjit.CompiledRNN)
    assert not isinstance(fast, nn.RNN)
    assert repr(fast) == repr(rnn)
    assert list(fast.state_dict()) == list(rnn.state_dict())
    assert (
        fast.parametrizations.weight_hh_l0.original0 is rnn.parametrizations.weight_hh_l0.original0
    )
    assert_same(fast, rnn)
    with torch.no_grad():
        fast.parametrizations.weight_hh_l0.original0.mul_(2)
        assert_same(fast, rnn)
        fast.weight_hh_l0 = torch.eye(4)
    torch.testing.assert_close(fast.weight_hh_l0, torch.eye(4))
    assert_same(fast, rnn)
    assert_same(copy.deepcopy(fast), rnn)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(fast)


def test_weight_norm_after_compiling_and_its_removal():
    rnn, fast = pair()
    parametrizations.weight_norm(fast, "weight_hh_l0")
    assert isinstance(fast, rnnjit.CompiledRNN)
    assert_same(fast, rnn)
    fast = rnnjit.compile(fast, backend="eager")
    parametrizations.weight_norm(fast, "weight_ih_l0")
    assert_same(fast, rnn)
    for name in ("weight_hh_l0", "weight_ih_l0"):
        parametrize.remove_parametrizations(fast, name)
    assert type(fast) is rnnjit.CompiledRNN
    assert_same(fast, rnn)


def test_pruning():
    rnn, fast = pair()
    mask = (torch.arange(16).view(4, 4) % 3 > 0).float()
    prune.custom_from_mask(fast, "weight_hh_l0", mask)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(mask)
    x = torch.randn(5, 2, 3)
    y = fast(x)[0]
    assert torch.equal(y, rnn(x)[0])
    y.sum().backward()
    assert torch.equal(fast.weight_hh_l0_orig.grad * (1 - mask), torch.zeros(4, 4))


def test_weights_replaced_by_plain_tensors():
    rnn, fast = pair()
    for module in (rnn, fast):
        raw = module.weight_hh_l0
        del module.weight_hh_l0
        module.weight_hh_l0 = torch.nn.functional.dropout(raw, 0.0) * 0.5
    assert_same(fast, rnn)
    fast(torch.randn(2, 1, 3))[0].sum().backward()


def test_tied_weights():
    rnn, fast = pair(num_layers=2, bias=False)
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    fast = rnnjit.compile(rnn, backend="eager")
    assert fast.weight_hh_l1 is fast.weight_hh_l0
    assert_same(fast, rnn)
