"""Protects PyTorch's own samples of nn.RNN, in PyTorch's own tests of every module.

The samples are those of `torch.testing._internal.common_modules.module_db`. nn.RNN itself goes
through the same functions here: a compiled module must pass as eager does, not more easily.
"""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from eager_pair import FEW
from torch import nn
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import noncontiguous_like

import rnnjit

(INFO,) = [info for info in module_db if info.module_cls is nn.RNN]
CLOSE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
KINDS = {
    "nn.RNN": lambda rnn: rnn,
    **{backend.name: partial(rnnjit.compile, backend=backend) for backend in FEW},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def made(request):
    """From a module and its call to the module under test."""
    return request.param


def samples(dtype=torch.float64, training=True, requires_grad=False, packed=False):
    """Eager modules and the arguments of a call, as the database lists them."""
    found = INFO.module_inputs_func(
        INFO,
        device="cpu",
        dtype=dtype,
        requires_grad=requires_grad,
        training=training,
        with_packed_sequence=packed,
    )
    assert len(found) == (64 if packed else 32)
    for sample in found:
        torch.manual_seed(0)
        given = sample.constructor_input
        rnn = nn.RNN(*given.args, **given.kwargs, dtype=dtype).train(training)
        yield rnn, sample


def flat(output):
    y, h = output
    return (y.data, h)


def call_with_weights(module, names, *values):
    weights = dict(zip(names, values[: len(names)], strict=True))
    return torch.func.functional_call(module, weights, values[len(names) :])


def close(got, expected):
    torch.testing.assert_close(got, expected, **CLOSE[expected[0].dtype])


@pytest.mark.parametrize("dtype", INFO.dtypes, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward(made, dtype, training):
    for rnn, sample in samples(dtype, training):
        call = sample.forward_input
        module = made(rnn)
        found = module(*call.args)
        close(found, sample.reference_fn(module, *call.args))
        close(found, rnn(*call.args))


def test_packed_sequences(made):
    for rnn, sample in samples(packed=True):
        (x, *rest) = sample.forward_input.args
        close(flat(made(rnn)(x, *rest)), flat(rnn(x, *rest)))


@pytest.mark.parametrize(
    ("check", "training"),
    [
        (torch.autograd.gradcheck, True),
        (torch.autograd.gradcheck, False),
        pytest.param(torch.autograd.gradgradcheck, True, marks=pytest.mark.full),
    ],
    ids=["first-train", "first-eval", "second-train"],
)
def test_numerical_gradients(made, check, training):
    for rnn, sample in samples(training=training, requires_grad=True):
        module = made(rnn)
        args = sample.forward_input.args
        weights = dict(module.named_parameters())
        run = partial(call_with_weights, module, list(weights))
        assert check(run, (*weights.values(), *args), fast_mode=True)


def test_noncontiguous_input_and_gradients(made):
    for rnn, sample in samples(requires_grad=True):
        module = made(rnn)
        args = sample.forward_input.args
        results = []
        for lay in (lambda t: t, noncontiguous_like):
            given = [lay(arg.detach()).requires_grad_() for arg in args]
            y, h = module(*given)
            torch.manual_seed(1)
            grads = [lay(torch.randn_like(y)), lay(torch.randn_like(h))]
            leaves = (*given, *module.parameters())
            results.append((y, h, *torch.autograd.grad((y, h), leaves, grads)))
        close(results[1], results[0])


def test_memory_format(made):
    """As for every module: a 4-D weight's format is no matter, and a 3-D input may be strided."""
    for rnn, sample in samples():
        module = made(rnn)
        args = [arg.t().contiguous().t() for arg in sample.forward_input.args]
        expected = module(*sample.forward_input.args)
        module.to(memory_format=torch.channels_last)
        y, h = module(*args)
        close((y, h), expected)
        assert y.is_contiguous()


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_give_the_same(made, copied):
    for rnn, sample in samples():
        module = made(rnn)
        args = sample.forward_input.args
        expected = module(*args)
        other = copied(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assert type(other) is type(module)
        torch.testing.assert_close(other(*args), expected, rtol=0, atol=0)


def test_representation_and_factory_keywords(made):
    for rnn, sample in samples():
        module = made(rnn)
        assert repr(module) == repr(rnn)
        assert "RNN(" in repr(module)
        for parameter in module.to(dtype=torch.float32).parameters():
            assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
        close(
            module(*[arg.float() for arg in sample.forward_input.args]),
            rnn(*[arg.float() for arg in sample.forward_input.args]),
        )


def test_to_empty_and_to_meta(made):
    for rnn, sample in samples():
        state = copy.deepcopy(rnn.state_dict())
        module = made(rnn)
        expected = module(*sample.forward_input.args)
        module.to_empty(device="meta")
        assert {p.device.type for p in module.parameters()} == {"meta"}
        module.to_empty(device="cpu").load_state_dict(state)
        close(module(*sample.forward_input.args), expected)


def test_errors(made):
    """What the database says that a call must reject is rejected, in the same words."""
    found = INFO.module_error_inputs_func(
        INFO, device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    forward = [e for e in found if e.error_on is ModuleErrorEnum.FORWARD_ERROR]
    assert forward
    for error in forward:
        sample = error.module_error_input
        given = sample.constructor_input
        module = made(nn.RNN(*given.args, **given.kwargs))
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*sample.forward_input.args)
