"""Protects `compile(..., recompute=True)`: the same results, and no gate is kept for backward."""

import copy
import pickle
from functools import partial

import pytest
import torch
from layer_kinds import initial, states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit
from rnnjit.dispatch.fallback import Fallback
from rnnjit.execution.recompute import Recomputing, RecomputingFallback
from rnnjit.execution.segments import segments
from rnnjit.execution.stack import run_stack
from rnnjit.ir import LSTM
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows
from rnnjit.testing import RecomputeBackend

# Enough steps and rows for five segments of eight steps.
T, B, I, H = 40, 64, 3, 5
LENGTHS = torch.arange(B).remainder(T).add(1).flip(0).sort(descending=True).values
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
projected = partial(nn.LSTM, proj_size=2)


def layer(make, **config):
    torch.manual_seed(0)
    return make(I, H, dtype=torch.float64, **config)


def given(rnn, packed=False):
    """x, or a batch of sequences that end in every segment, and the leaves x and hx."""
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    hx = initial(rnn, B)
    for state in states(hx):
        state.requires_grad_()
    return (lambda: pack_padded_sequence(x, LENGTHS) if packed else x), hx, x


def outputs(module, x, hx):
    """Y and the last states in a row."""
    y, last = module(x, hx)
    return (y.data if isinstance(y, PackedSequence) else y, *states(last))


def loss(found, through=None):
    """A number in which no two elements count alike, of some of the outputs."""
    terms = [(each * (1 + torch.arange(each.numel()).sin().view_as(each))).sum() for each in found]
    return sum(terms) if through is None else terms[through]


def agree(rnn, fast, packed=False, through=None, frozen=lambda name: False):
    """Outputs and gradients agree with those of eager in float64."""
    make_x, hx, x = given(rnn, packed)
    named = {"x": x, **{f"hx{i}": state for i, state in enumerate(states(hx))}}
    named.update(rnn.named_parameters())
    for name, leaf in named.items():
        leaf.requires_grad_(not frozen(name))
    leaves = [leaf for leaf in named.values() if leaf.requires_grad]
    found = []
    for module in (fast, rnn):
        torch.manual_seed(1)  # of the dropout masks
        results = outputs(module, make_x(), hx)
        grads = torch.autograd.grad(loss(results, through), leaves, materialize_grads=True)
        found.append((*[each.detach() for each in results], *grads))
    torch.testing.assert_close(*found, **CLOSE)


CASES = {
    "LSTM": (nn.LSTM, {}, False),
    "GRU": (nn.GRU, {}, False),
    "projected": (projected, {}, False),
    "packed": (nn.LSTM, {}, True),
    "packed-projected": (projected, {}, True),
    "packed-GRU": (nn.GRU, {}, True),
    "two-directions": (nn.LSTM, {"bidirectional": True, "bias": False}, False),
    "two-directions-GRU": (nn.GRU, {"bidirectional": True}, False),
    "two-directions-projected": (projected, {"bidirectional": True}, False),
    "two-directions-packed": (nn.LSTM, {"bidirectional": True}, True),
    "dropout": (nn.LSTM, {"num_layers": 2, "dropout": 0.5, "bidirectional": True}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_eager_in_float64(name):
    make, config, packed = CASES[name]
    rnn = layer(make, **config)
    agree(rnn, rnnjit.compile(rnn, backend="numba", recompute=True), packed)


@pytest.mark.parametrize("name", ["packed", "two-directions-GRU"])
def test_it_works_on_every_backend_with_a_backward_pass(name):
    make, config, packed = CASES[name]
    rnn = layer(make, **config)
    agree(rnn, rnnjit.compile(rnn, backend=RecomputeBackend(), recompute=True), packed)


@pytest.mark.parametrize("through", [0, 1, 2], ids=["y", "h_n", "c_n"])
@pytest.mark.parametrize("name", ["packed-projected", "two-directions"])
def test_gradients_through_one_of_the_results_alone(name, through):
    make, config, packed = CASES[name]
    rnn = layer(make, **config)
    fast = rnnjit.compile(rnn, backend="numba", recompute=True)
    agree(rnn, fast, packed, through=through)


FROZEN = {
    "all but x": lambda name: name != "x",
    "all but c_0": lambda name: name != "hx1",
    "x and hx": lambda name: name in ("x", "hx0", "hx1"),
    "all but W_hh of a direction": lambda name: name != "weight_hh_l0_reverse",
    "some of each direction": lambda name: name in ("x", "weight_ih_l0", "bias_hh_l0_reverse"),
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_gradients_of_some_inputs_alone(frozen):
    rnn = layer(nn.LSTM, bidirectional=True)
    agree(rnn, rnnjit.compile(rnn, backend="numba", recompute=True), frozen=FROZEN[frozen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["LSTM", "packed", "two-directions-projected", "dropout"])
def test_the_forward_pass_gives_the_same_bits_as_without_it(name, dtype):
    make, config, packed = CASES[name]
    rnn = layer(make, **config).to(dtype)
    x = torch.randn(T, B, I).to(dtype)
    x = pack_padded_sequence(x, LENGTHS) if packed else x
    found = []
    for recompute in (False, True):
        torch.manual_seed(1)
        module = rnnjit.compile(rnn, backend="numba", recompute=recompute)
        found.append(outputs(module, x, None))
    assert all(map(torch.equal, *found))


def test_resets_and_every_state_of_every_step():
    rnn = layer(nn.LSTM)
    _, hx, x = given(rnn)
    mask = torch.rand(T, B) < 0.05
    found = []
    for module in (
        rnnjit.compile(rnn, backend="numba", recompute=True),
        rnnjit.compile(rnn, backend="eager"),
    ):
        for options in ({"return_states": True}, {"return_states": True, "reset": mask}):
            y, last, ((h, c),) = module(x, hx, **options)
            leaves = x, *hx, *rnn.parameters()
            found.append((y, *last, h, c, *torch.autograd.grad(loss((y, *last, c)), leaves)))
    torch.testing.assert_close(found[0], found[2], **CLOSE)
    torch.testing.assert_close(found[1], found[3], **CLOSE)


@pytest.mark.parametrize(
    ("make", "boundaries"), [(nn.LSTM, 4 * B * H), (nn.GRU, 0), (projected, 4 * B * H)]
)
def test_what_is_kept_is_the_inputs_y_and_the_states_between_segments(make, boundaries):
    rnn = layer(make)
    fast = rnnjit.compile(rnn, backend="numba", recompute=True)
    _, hx, x = given(rnn)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = fast(x, hx)
    y.sum().backward()
    inputs = [x, *states(hx), *rnn.parameters()]
    assert sum(kept) == sum(each.numel() for each in inputs) + y.numel() + boundaries


class Watched(RecomputeBackend):
    """Notes the rows of each forward pass, and whether it is to keep something."""

    def __init__(self):
        self.seen = []

    def forward(self, layer, rows, x, hx, weights, keep):
        self.seen.append((rows.N, keep))
        return super().forward(layer, rows, x, hx, weights, keep)


def test_the_backward_pass_holds_one_segment_at_a_time():
    watched = Watched()
    rnn = layer(nn.LSTM)
    fast = rnnjit.compile(rnn, backend=watched, recompute=True)
    make_x, hx, _ = given(rnn)
    y, _ = fast(make_x(), hx)
    assert watched.seen == [(8 * B, False)] * 5
    y.sum().backward()
    assert watched.seen[5:] == [(8 * B, True)] * 5


@pytest.mark.parametrize("recorded", [True, False])
def test_calls_that_keep_no_gates_are_left_alone(recorded):
    watched = Watched()
    make = nn.RNN if recorded else nn.LSTM
    fast = rnnjit.compile(layer(make), backend=watched, recompute=True)
    with torch.set_grad_enabled(recorded):
        fast(torch.randn(T, B, I, dtype=torch.float64))
    assert watched.seen == [(T * B, recorded)]


def lstm(directions=1):
    return LayerSpec(LSTM, I, H, directions, True)


def test_segments_have_about_as_many_rows_each():
    sizes = torch.arange(1000, 0, -1)  # the number of rows falls from step to step
    rows = Rows(1000, 1000, int(sizes.sum()), sizes)
    found = segments(lstm(), rows)
    assert len(found) == pytest.approx(1000**0.5, abs=2)
    assert all(each.rows.N <= rows.N / 31 + 1000 for each in found)
    assert sum(each.rows.T for each in found) == rows.T
    assert torch.equal(torch.cat([each.rows.batch_sizes for each in found]), sizes)
    assert [each.before for each in found][1:] == [each.rows.batch_sizes[-1] for each in found][:-1]


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (3, 1), (4, 2), (1000, 31)])
def test_small_calls_are_one_segment(steps, expected):
    assert len(segments(lstm(2), Rows(steps, 1, steps))) == 1
    assert len(segments(lstm(2), Rows(steps, 256, 256 * steps))) == expected


class Fails(RecomputeBackend):
    """Raises in its forward pass."""

    name = "fails"

    def forward(self, *given):
        raise RuntimeError("no kernel")


def test_a_backend_that_takes_over_recomputes_too():
    watched, fails = Watched(), Fails()
    spec = RNNSpec(I, H, cell=LSTM)
    problem = Problem(torch.float64, "cpu", T, B, T * B, False, True)
    policy = RecomputingFallback(Fallback(lambda: iter([watched])), spec, problem)
    rnn = layer(nn.LSTM)
    _, hx, x = given(rnn)
    stack = spec, Rows(T, B, T * B), x, hx, [*rnn.parameters()], True, True
    with pytest.warns(rnnjit.RNNJitWarning, match="'fails' raised RuntimeError: no kernel"):
        y, h_n = run_stack(Recomputing(fails), *stack, policy)
    torch.testing.assert_close((y, h_n), rnn(x, hx), **CLOSE)
    assert watched.seen == [(8 * B, False)] * 5


def test_the_choice_stays_with_the_module():
    rnn = layer(nn.LSTM)
    fast = rnnjit.compile(rnn, recompute=True)
    copies = copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))
    assert all(each.recompute for each in (fast, *copies))
    assert fast.state_dict().keys() == rnn.state_dict().keys()
    assert not rnnjit.compile(fast).recompute
    assert not rnnjit.compile(rnn).recompute
    with pytest.raises(TypeError, match="recompute must be True or False, got int"):
        rnnjit.compile(rnn, recompute=1)


def test_assignment_takes_effect_at_the_next_call():
    watched = Watched()
    fast = rnnjit.compile(layer(nn.GRU), backend=watched)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for recompute in (True, False):
        fast(x)
        fast.recompute = recompute
    fast(x)
    assert [keep for _, keep in watched.seen] == [True, False, True]


def test_explain_names_the_calls_that_recompute():
    x = torch.randn(T, B, I, dtype=torch.float64)
    says = "the backward pass recomputes the forward pass"
    for make, expected in ((nn.LSTM, True), (nn.RNN, False)):
        fast = rnnjit.compile(layer(make), backend=RecomputeBackend(), recompute=True)
        assert (says in str(rnnjit.explain(fast, x))) is expected
        with torch.no_grad():
            assert says not in str(rnnjit.explain(fast, x))


def test_writing_to_an_input_between_the_passes_raises():
    rnn = layer(nn.LSTM)
    fast = rnnjit.compile(rnn, backend="numba", recompute=True)
    y, _ = fast(torch.randn(T, B, I, dtype=torch.float64))
    with torch.no_grad():
        rnn.bias_hh_l0.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
