"""Protects the backward pass of the eager-mode path, in all the ways autograd may ask for it."""

import itertools
import threading
import warnings

import pytest
import torch
from eager_pair import BACKENDS, B, H, I, T, agree, inputs, pair, weigh
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from rnnjit.testing import RecomputeBackend


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


@pytest.mark.parametrize("through", ["y", "h_n", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lengths", [None, [4, 2, 2]])
def test_gradients_through_either_output(backend, through, layers, lengths):
    rnn, fast = pair(backend, num_layers=layers, bidirectional=True)
    x, h0 = inputs(2 * layers)

    def gradients(module):
        given = x if lengths is None else pack_padded_sequence(x, lengths)
        loss = weigh(*module(given, h0), through)
        leaves = (x, h0, *module.parameters())
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    agree(gradients, rnn, fast)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=6))[1:], ids=str)
def test_any_subset_frozen(backend, wanted):
    rnn, fast = pair(backend)
    x, h0 = inputs()
    leaves = (x, h0, *rnn.parameters())
    for leaf, want in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(want)

    def gradients(module):
        y, h = module(x, h0)
        assert y.requires_grad
        return torch.autograd.grad(weigh(y, h), [leaf for leaf in leaves if leaf.requires_grad])

    agree(gradients, rnn, fast)


def test_all_frozen_gives_no_graph(backend):
    _, fast = pair(backend)
    fast.requires_grad_(False)
    assert not fast(torch.randn(T, B, I).double())[0].requires_grad


def overwrite(y):
    y.mul_(2)


def overwrite_a_view(y):
    y[1].fill_(3)


def overwrite_a_detached_alias(y):
    y.detach().zero_()


def overwrite_without_a_trace(y):
    y.data.zero_()


def overwrite_by_numpy(y):
    y.detach().numpy().fill(0)


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        overwrite_a_view,
        overwrite_a_detached_alias,
        overwrite_without_a_trace,
        overwrite_by_numpy,
    ],
)
@pytest.mark.parametrize("config", [{}, {"num_layers": 2, "batch_first": True}], ids=str)
def test_outputs_may_be_overwritten_before_the_backward_pass(backend, change, config):
    rnn, fast = pair(backend, **config)
    x, h0 = inputs(config.get("num_layers", 1))
    x = x.transpose(0, 1) if "batch_first" in config else x

    def gradients(module):
        y, h = module(x, h0)
        change(y)
        h.mul_(3)
        return torch.autograd.grad(y.sum() + (2 * h).sum(), (x, h0, *module.parameters()))

    agree(gradients, rnn, fast)


@pytest.mark.parametrize("what", ["x", "weight"])
def test_saved_tensors_changed_in_place_raise_as_in_eager(backend, what):
    for module in pair(backend):
        x, h0 = inputs()
        x = x.detach()
        y, _ = module(x, h0)
        with torch.no_grad():
            (x if what == "x" else module.weight_hh_l0).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_backward_twice(backend):
    rnn, fast = pair(backend)
    x, _ = inputs()

    def gradients(module):
        y, h = module(x)
        first = torch.autograd.grad(weigh(y, h), x, retain_graph=True)
        return *first, *torch.autograd.grad(weigh(y, h, "y"), x)

    agree(gradients, rnn, fast)
    loss = fast(x)[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_what_was_kept_is_freed_by_the_backward_pass():
    _, fast = pair(RecomputeBackend())
    y, _ = fast(inputs()[0])
    node = y.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    assert node.saved_tensors
    y.sum().backward(retain_graph=True)
    assert node.saved_tensors
    y.sum().backward()
    with pytest.raises(RuntimeError, match="already been freed"):
        _ = node.saved_tensors


def test_gradients_accumulate(backend):
    rnn, fast = pair(backend)

    def accumulated(module):
        module.zero_grad()
        for scale in (1, 2):
            (scale * weigh(*module(inputs()[0]))).backward()
        return [p.grad.clone() for p in module.parameters()]

    agree(accumulated, rnn, fast)


def test_tensor_hooks_and_retained_gradients(backend):
    rnn, fast = pair(backend)

    def gradients(module):
        x, _ = inputs()
        y, h = module(x)
        y.retain_grad()
        y.register_hook(lambda grad: 3 * grad)
        seen = []
        handle = module.weight_hh_l0.register_hook(seen.append)
        weigh(y, h).backward()
        handle.remove()
        return x.grad, y.grad, *seen

    agree(gradients, rnn, fast)


def test_anomaly_mode(backend):
    rnn, fast = pair(backend)
    x, _ = inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anomaly mode announces itself
        with torch.autograd.detect_anomaly():
            agree(lambda m: torch.autograd.grad(weigh(*m(x)), x), rnn, fast)
            y, _ = fast(x)
            with torch.no_grad():
                fast.weight_ih_l0.data.fill_(float("nan"))
            with pytest.raises(RuntimeError, match="returned nan values"):
                y.sum().backward()


def test_saved_tensor_hooks_see_everything_that_is_kept():
    _, fast = pair(RecomputeBackend())
    x, h0 = inputs()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y, _ = fast(x, h0)
    shapes = [tuple(t.shape) for t in packed]
    assert shapes.count((T * B, H)) == 1
    assert y.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in packed}


@pytest.mark.parametrize("change", [lambda y: None, overwrite])
def test_save_on_cpu_and_identity_hooks(backend, change):
    rnn, fast = pair(backend, num_layers=2)
    x, _ = inputs()

    def gradients(module):
        found = []
        for context in (
            torch.autograd.graph.save_on_cpu(),
            torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        ):
            with context:
                y, h = module(x)
                change(y)
                found += torch.autograd.grad(weigh(y, h), (x, *module.parameters()))
        return found

    agree(gradients, rnn, fast)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(backend, reentrant):
    rnn, fast = pair(backend, num_layers=2, dropout=0.5)

    def gradients(module):
        x, _ = inputs()
        module.zero_grad()
        y, h = checkpoint(module, x, use_reentrant=reentrant)
        weigh(y, h).backward()
        return x.grad, *[p.grad.clone() for p in module.parameters()]

    agree(gradients, rnn, fast)


@pytest.mark.parametrize("kind", ["imaginary part", "expanded", "transposed"])
def test_gradients_of_any_layout(backend, kind):
    rnn, fast = pair(backend)

    def gradients(module):
        x, _ = inputs()
        y, _ = module(x)
        torch.manual_seed(2)
        grad = {
            "imaginary part": torch.randn(T, B, H, dtype=torch.cdouble).conj().imag,
            "expanded": torch.ones(1, dtype=torch.float64).expand(T, B, H),
            "transposed": torch.randn(H, B, T, dtype=torch.float64).permute(2, 1, 0),
        }[kind]
        return torch.autograd.grad(y, (x, *module.parameters()), grad)

    agree(gradients, rnn, fast)


def test_backward_in_eval_mode_and_from_another_thread(backend):
    rnn, fast = pair(backend)
    x, _ = inputs()
    rnn.eval(), fast.eval()

    def gradients(module):
        losses = [weigh(*module(x))]
        thread = threading.Thread(target=losses[0].backward)
        module.zero_grad()
        thread.start(), thread.join()
        return [p.grad.clone() for p in module.parameters()]

    agree(gradients, rnn, fast)
