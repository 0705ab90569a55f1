"""Protects torch.profiler: one named range for each layer, and no cost for other calls."""

import pytest
import torch
from eager_pair import CLOSE, FEW, B, agree, inputs, pair, weigh
from layer_kinds import KINDS, initial, kinds_on_few
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import rnnjit

LAYERS = 3
EAGER = rnnjit.backends()["eager"]
ON_EAGER = [
    pytest.param(
        (make, EAGER), id=f"{kind}-eager", marks=() if kind == "LSTM" else pytest.mark.full
    )
    for kind, make in KINDS.items()
]


@pytest.fixture(params=[*kinds_on_few(), *ON_EAGER])
def kind(request):
    """A kind of layer, and the backend that it is compiled for."""
    return request.param


def profiled(function):
    """What `function()` gives, and how often each name of rnnjit's stands in its profile."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        result = function()
    names = [event.name for event in found.events()]
    return result, {name: names.count(name) for name in names if "rnnjit" in name.lower()}


def expected_ranges(backend, calls=1):
    return {f"rnnjit: layer {index} on {backend.name}": calls for index in range(LAYERS)}


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", ["dense", "packed", "unbatched"])
def test_one_range_a_layer(kind, form, grad):
    make, backend = kind
    _, fast = pair(backend, make, num_layers=LAYERS, bidirectional=True)
    x = inputs()[0]
    given = {"dense": x, "packed": pack_padded_sequence(x, [4, 2, 1]), "unbatched": x[:, 0]}[form]
    with torch.set_grad_enabled(grad):
        plain = fast(given)
        fast(given)  # the short way, where there is one
        (y, last), ranges = profiled(lambda: fast(given))
        _, again = profiled(lambda: [fast(given) for _ in range(4)])
    assert ranges == expected_ranges(backend)
    assert again == expected_ranges(backend, calls=4)
    values, before = (y.data, last), (plain[0].data, plain[1])
    torch.testing.assert_close(values, before, rtol=0, atol=1e-15)


def test_the_backward_pass_has_a_node_a_layer(kind):
    make, backend = kind
    rnn, fast = pair(backend, make, num_layers=LAYERS)
    loss = weigh(*fast(inputs()[0], initial(rnn, B)))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        loss.backward()
    names = [event.name for event in found.events()]
    assert names.count("_RNNLayerBackward") == (0 if backend.differentiable else LAYERS)


def test_gradients_under_the_profiler(kind):
    make, backend = kind
    rnn, fast = pair(backend, make, num_layers=LAYERS)
    x, hx = inputs()[0], initial(rnn, B)

    def gradients(module):
        leaves = (x, *module.parameters())
        return profiled(lambda: torch.autograd.grad(weigh(*module(x, hx)), leaves))[0]

    agree(gradients, rnn, fast)


def test_routes_are_left_while_a_profiler_runs_and_taken_again_afterwards():
    rnn, fast = pair(EAGER, num_layers=LAYERS)
    x = inputs()[0].detach()
    fast(x)
    routes = dict(fast._fast_paths)
    assert routes
    profiled(lambda: fast(x))
    assert fast._fast_paths == routes
    torch.testing.assert_close(fast(x), rnn(x), **CLOSE)


def test_a_scheduled_profiler_of_a_training_loop():
    _, fast = pair(FEW[0], num_layers=LAYERS)
    x = inputs()[0]
    kept = []
    schedule = torch.profiler.schedule(wait=1, warmup=1, active=2)
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule,
        on_trace_ready=lambda p: kept.extend(e.name for e in p.events()),
    ) as watcher:
        for _ in range(4):
            fast(x)[0].sum().backward()
            watcher.step()
    assert {n: kept.count(n) for n in set(kept) if n.startswith("rnnjit: ")} == expected_ranges(
        FEW[0], calls=2
    )


def test_the_older_profiler_names_them_too():
    _, fast = pair(FEW[0], num_layers=LAYERS)
    with torch.autograd.profiler.profile() as found:
        fast(inputs()[0])
    counts = {e.key: e.count for e in found.key_averages() if e.key.startswith("rnnjit: ")}
    assert counts == expected_ranges(FEW[0])
