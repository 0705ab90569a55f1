"""Protects the gradients of every kind of layer: each leaf through each output, any of them frozen.

The values are eager's in float64; those of forward mode are finite differences of eager's.
"""

from itertools import product

import pytest
import torch
from eager_pair import CLOSE, B, I, T, agree, pair
from layer_kinds import as_hx, initial, kinds_on_few, states
from torch.autograd import forward_ad
from torch.func import functional_call, jvp
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_map

from rnnjit.testing.covering import covering

OPTIONS = {"num_layers": 2, "bidirectional": True}
# Forward-mode AD makes torch import decompositions of its own that warn.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


@pytest.fixture(params=kinds_on_few())
def modules(request):
    make, backend = request.param
    return pair(backend, make, **OPTIONS)


def arguments(rnn):
    """The input `[T, B, I]`, and each of the states `[L*D, B, P or H]`."""
    x = torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, *states(initial(rnn, B, seed=2))


def call(module, x, *given, packed=False):
    """The outputs: y, then each of the last states."""
    x = pack_padded_sequence(x, [4, 2, 1]) if packed else x
    y, last = module(x, as_hx(given))
    return y.data if isinstance(y, PackedSequence) else y, *states(last)


def groups(rnn, leaves):
    """The leaves by what they are: x, h0, c0, and all weights of one name, such as weight_hr."""
    found = {name: [leaf] for name, leaf in zip(("x", "h0", "c0"), leaves, strict=False)}
    for name, parameter in rnn.named_parameters():
        found.setdefault(name.split("_l")[0], []).append(parameter)
    return found


def few_ways(names, outputs):
    """Rows in which any two facts meet: what is frozen, what the loss depends on, packed or not."""
    axes = {name: ["needed", "frozen"] for name in names}
    through = ["all", *map(str, range(outputs))]
    return covering({**axes, "through": through, "packed": ["no", "yes"]})


def all_subsets(names, outputs):
    rows = product(*[["needed", "frozen"]] * len(names), ["all"], ["no"])
    return [dict(zip((*names, "through", "packed"), row, strict=True)) for row in rows]


@pytest.mark.parametrize("ways", [few_ways, pytest.param(all_subsets, marks=pytest.mark.full)])
def test_any_subset_frozen_through_any_output(modules, ways):
    rnn, fast = modules
    leaves = arguments(rnn)
    parts = groups(rnn, leaves)
    assert ("weight_hr" in parts, "c0" in parts) == (rnn.proj_size > 0, rnn.mode == "LSTM")
    for way in ways(list(parts), 1 + len(leaves[1:])):
        needed = []
        for name, members in parts.items():
            for leaf in members:
                leaf.requires_grad_(way[name] == "needed")
                needed += [leaf] if leaf.requires_grad else []
        if not needed:
            continue

        def gradients(module, way=way, needed=needed):
            found = call(module, *leaves, packed=way["packed"] == "yes")
            some = found if way["through"] == "all" else [found[int(way["through"])]]
            loss = sum((output * (1 + output).sin()).sum() for output in some)
            return torch.autograd.grad(loss, needed, materialize_grads=True)

        agree(gradients, rnn, fast)


def test_gradients_of_gradients_by_every_leaf(modules):
    rnn, fast = modules
    leaves = [leaf.requires_grad_() for leaf in arguments(rnn)]

    def second(module):
        every = (*leaves, *module.parameters())
        found = call(module, *leaves, packed=True)
        loss = sum((output * (1 + output).sin()).sum() for output in found)
        first = torch.autograd.grad(loss, every, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), every)

    agree(second, rnn, fast)


@forward_mode
def test_forward_mode_by_x_the_states_and_the_weights(modules):
    rnn, fast = modules
    leaves = arguments(rnn)
    weights = {name: p.detach() for name, p in rnn.named_parameters()}
    given = (weights, *leaves)
    torch.manual_seed(3)
    tangents = tree_map(torch.randn_like, given)

    def run(module):
        def function(values, *inputs):
            return call(lambda x, hx: functional_call(module, values, (x, hx)), *inputs)

        return function

    _, found = jvp(run(fast), given, tangents)
    step = 1e-6
    ahead = run(rnn)(*tree_map(lambda value, d: value + step * d, given, tangents))
    behind = run(rnn)(*tree_map(lambda value, d: value - step * d, given, tangents))
    expected = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        dual = call(fast, *map(forward_ad.make_dual, leaves, tangents[1:]))
        partly = [forward_ad.unpack_dual(output).tangent for output in dual]
    _, again = jvp(lambda *v: run(fast)(weights, *v), leaves, tangents[1:])
    torch.testing.assert_close(partly, list(again), **CLOSE)
