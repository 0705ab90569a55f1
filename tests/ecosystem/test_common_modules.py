"""Protects PyTorch's own list of modules to test: its samples of every recurrent layer and cell.

The samples are those of `torch.testing._internal.common_modules.module_db`, and they are compared
with the module of torch: results, gradients, and errors. `test_module_db.py` has PyTorch's further
tests of modules for nn.RNN.
"""

import copy

import pytest
import torch
from computing import usual
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils import _pytree as tree

import rnnjit

CLASSES = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
INFOS = [info for info in module_db if info.module_cls in CLASSES]
PACKED = [info for info in INFOS if info.module_cls in (nn.RNN, nn.GRU)]
# The samples are numbers of up to 9: torch's own gradients in float32 are 2e-4 from the exact ones.
CLOSE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-3, "atol": 1e-3}}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def named(info):
    return info.module_cls.__name__


def every(infos):
    return pytest.mark.parametrize("info", infos, ids=named)


def samples(info, dtype, *, training=True, **options):
    """Eager modules, and the arguments of a call as the list has them."""
    given = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    torch.manual_seed(0)
    found = info.module_inputs_func(info, **given, **options)
    assert found
    for sample in found:
        made = sample.constructor_input
        module = info.module_cls(*made.args, **made.kwargs, dtype=dtype).train(training)
        yield sample, module, sample.forward_input


def tensors(results):
    """All tensors in nested tuples and packed sequences."""
    parts = tree.tree_leaves(results, is_leaf=lambda part: isinstance(part, PackedSequence))
    return [part.data if isinstance(part, PackedSequence) else part for part in parts]


def results_and_gradients(module, args, weights):
    found = tensors(module(*args))
    loss = sum((part * (1 + part).sin()).sum() for part in found)
    return found, torch.autograd.grad(loss, [*tensors(args), *weights])


def expected(module, args):
    """Those of torch's own module in float64."""
    exact = copy.deepcopy(module).double()
    args = tree.tree_map(lambda part: part.detach().double().requires_grad_(), args)
    return results_and_gradients(exact, args, exact.parameters())


def test_all_are_on_the_list():
    assert {info.module_cls for info in INFOS} == set(CLASSES)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every(INFOS)
def test_results_and_gradients(info, dtype, training):
    for sample, module, call in samples(info, dtype, training=training):
        fast = rnnjit.compile(module, backend=usual(info.module_cls))
        want = expected(module, call.args)
        for _ in range(2):  # the second call takes the short way
            got = results_and_gradients(fast, call.args, module.parameters())
            torch.testing.assert_close(got, want, check_dtype=False, **CLOSE[dtype])
        if sample.reference_fn is not None:
            reference = tensors(sample.reference_fn(fast, *call.args))
            torch.testing.assert_close(reference, want[0], check_dtype=False, **CLOSE[dtype])


@every(PACKED)
def test_packed_sequences(info):
    for _, module, call in samples(info, torch.float64, with_packed_sequence=True):
        fast = rnnjit.compile(module, backend=usual(info.module_cls))
        results = []
        for each in (fast, module):
            found = tensors(each(*call.args))
            grads = torch.autograd.grad(sum(part.sin().sum() for part in found), fast.parameters())
            results.append((found, grads))
        torch.testing.assert_close(*results, **CLOSE[torch.float64])


@every(INFOS)
def test_errors(info):
    """What a call must reject is rejected, in the same words."""
    given = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": True}
    found = info.module_error_inputs_func(info, **given)
    rejected = [error for error in found if error.error_on is ModuleErrorEnum.FORWARD_ERROR]
    assert rejected
    for error in rejected:
        sample = error.module_error_input
        made, call = sample.constructor_input, sample.forward_input
        module = info.module_cls(*made.args, **made.kwargs)
        fast = rnnjit.compile(module, backend=usual(info.module_cls))
        with pytest.raises(error.error_type, match=error.error_regex):
            fast(*call.args, **call.kwargs)
