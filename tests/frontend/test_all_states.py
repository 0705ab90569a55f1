"""Protects `return_states`: every state of every layer and step, against eager step by step."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import rnnjit
from rnnjit.reference import layer_backward, layer_forward_states
from rnnjit.testing import RecomputeBackend

T, B, I, H = 5, 3, 3, 4
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
DOUBLE = {"dtype": torch.float64}


class Recording(RecomputeBackend):
    """A backend that records states, and counts its calls."""

    name = "recording"

    def __init__(self):
        self.calls = []

    def records_states(self, layer, problem):
        return True

    def forward_states(self, layer, rows, x, hx, weights, keep):
        self.calls.append("forward")
        with torch.no_grad():
            found = layer_forward_states(layer, rows, x, hx, weights)
        return found._replace(saved=(found.y * 2,) if keep else ())

    def backward_states(
        self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, grad_states, needs
    ):
        self.calls.append("backward")
        expected = layer_forward_states(layer, rows, x, hx, weights)
        assert torch.equal(output.y, expected.y)
        assert torch.equal(output.states[0], expected.states[0])
        assert torch.equal(output.saved[0], expected.y * 2)
        with torch.no_grad():
            return layer_backward(layer, rows, x, hx, weights, grad_y, grad_h_n, needs, grad_states)


def compiled(rnn, backend):
    """Compiled, also where only eager computes such layers."""
    fast = rnnjit.compile(rnn, backend="eager")
    fast.backend = backend
    return fast


def split(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def by_hand(rnn, x, hx=None, before=None):
    """`[L][S][T, D * features]` of one sequence `[T, I]`, and the last states `[S][L * D, ...]`.

    A one-layer module of eager runs each direction step by step. Before step t of direction 0,
    `before(layer, t, states)` may exchange the states.
    """
    D = 2 if rnn.bidirectional else 1
    proj = {"proj_size": rnn.proj_size} if rnn.proj_size else {}
    every, lasts = [], []
    for layer in range(rnn.num_layers):
        one = type(rnn)(x.shape[1], H, bias=rnn.bias, **proj, **DOUBLE)
        ways = []
        for d in range(D):
            suffix = f"l{layer}" + ("_reverse" if d else "")
            weights = {name: getattr(rnn, name[:-2] + suffix) for name, _ in one.named_parameters()}
            sizes = (rnn.proj_size or H, H)[: 2 if isinstance(rnn, nn.LSTM) else 1]
            states = [torch.zeros(1, size, **DOUBLE) for size in sizes]
            if hx is not None:
                states = [h[layer * D + d, None] for h in hx]
            found = {}
            for t in range(len(x)) if d == 0 else reversed(range(len(x))):
                if before is not None:
                    states = before(layer, t, states)
                given = states[0] if len(states) == 1 else tuple(states)
                states = split(functional_call(one, weights, (x[t, None], given))[1])
                found[t] = [state[0] for state in states]
            steps = [found[t] for t in range(len(x))]
            ways.append([torch.stack(state) for state in zip(*steps, strict=True)])
            lasts.append([state[0] for state in states])
        every.append([torch.cat(columns, 1) for columns in zip(*ways, strict=True)])
        x = every[-1][0]
    return every, [torch.stack(state) for state in zip(*lasts, strict=True)]


CASES = {
    "lstm": (nn.LSTM, {}, "batched"),
    "lstm-2-both-ways-projected": (
        *(nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
        "batched",
    ),
    "lstm-packed": (nn.LSTM, {"num_layers": 2, "bias": False}, "packed"),
    "lstm-both-ways-packed": (nn.LSTM, {"bidirectional": True, "proj_size": 3}, "packed"),
    "lstm-2-batch-first": (nn.LSTM, {"num_layers": 2, "batch_first": True}, "batched"),
    "lstm-unbatched": (nn.LSTM, {"num_layers": 2, "batch_first": True}, "unbatched"),
    "gru-2-batch-first": (
        *(nn.GRU, {"num_layers": 2, "batch_first": True, "bidirectional": True}),
        "batched",
    ),
    "gru-packed": (nn.GRU, {"num_layers": 2}, "packed"),
    "rnn-2": (nn.RNN, {"num_layers": 2, "bidirectional": True}, "batched"),
}
#: An order that is not that of the lengths.
LENGTHS = {"batched": [T] * B, "unbatched": [T], "packed": [3, T, 1]}


def call(fast, form, sequences, hx):
    """y, h_n and the states of a compiled module, with states `[L][S][B]` of `[t, ...]`."""
    first, lengths = fast.batch_first, [len(each) for each in sequences]
    given = hx[0] if len(hx) == 1 else tuple(hx)
    if form == "packed":
        x = pack_sequence(sequences, enforce_sorted=False)
    elif form == "unbatched":
        (x,), given = sequences, given.squeeze(1) if len(hx) == 1 else tuple(h[:, 0] for h in hx)
    else:
        x = torch.stack(sequences, 0 if first else 1)
    y, h_n, states = fast(x, given, return_states=True)

    def apart(value):
        if form == "packed":
            assert isinstance(value, PackedSequence)
            value, found = pad_packed_sequence(value)
            assert found.tolist() == lengths
        elif form == "unbatched":
            return [value]
        elif first:
            value = value.transpose(0, 1)
        return [value[:length, b] for b, length in enumerate(lengths)]

    h_n = [h[:, None] if form == "unbatched" else h for h in split(h_n)]
    return apart(y), h_n, [[apart(state) for state in layer] for layer in states]


@pytest.mark.parametrize("backend", ["auto", "eager", Recording()], ids=["auto", "eager", "own"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_eager_step_by_step(case, backend):
    kind, options, form = CASES[case]
    torch.manual_seed(0)
    rnn = kind(I, H, **DOUBLE, **options)
    lengths, D = LENGTHS[form], 2 if rnn.bidirectional else 1
    xs = [torch.randn(length, I, **DOUBLE, requires_grad=True) for length in lengths]
    sizes = (rnn.proj_size or H, H)[: 2 if kind is nn.LSTM else 1]
    L = rnn.num_layers
    hx = [torch.randn(L * D, len(xs), size, **DOUBLE, requires_grad=True) for size in sizes]
    fast = compiled(rnn, backend)
    y, h_n, states = call(fast, form, xs, hx)
    hand = [by_hand(rnn, x, [h[:, b] for h in hx]) for b, x in enumerate(xs)]
    expected = [
        [[hand[b][0][i][s] for b in range(len(xs))] for s in range(len(sizes))] for i in range(L)
    ]
    torch.testing.assert_close(states, expected, **CLOSE)
    torch.testing.assert_close(y, expected[-1][0], **CLOSE)
    lasts = [torch.stack([hand[b][1][s] for b in range(len(xs))], 1) for s in range(len(sizes))]
    torch.testing.assert_close(h_n, lasts, **CLOSE)

    def flat(layers):
        return [each for layer in layers for state in layer for each in state]

    leaves = [*xs, *hx, *rnn.parameters()]
    seeds = [torch.randn_like(each) for each in (*flat(states), *y, *h_n)]
    got = torch.autograd.grad((*flat(states), *y, *h_n), leaves, seeds)
    wanted = torch.autograd.grad((*flat(expected), *expected[-1][0], *lasts), leaves, seeds)
    torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("needed", ["x", "weight", "none"])
def test_a_backend_that_records_states_runs_both_passes(needed):
    backend, rnn = Recording(), nn.LSTM(I, H, 2).requires_grad_(False)
    x = torch.randn(T, B, I, requires_grad=needed == "x")
    rnn.weight_hh_l1.requires_grad_(needed == "weight")
    _, _, states = compiled(rnn, backend)(x, return_states=True)
    assert states[1][1].requires_grad is (needed != "none")
    if needed != "none":
        states[1][1].sum().backward()
    # The weight of the second layer needs nothing of the first.
    passes = {"x": 2, "weight": 1, "none": 0}[needed]
    assert backend.calls == ["forward"] * 2 + ["backward"] * passes


def test_gradients_of_gradients():
    torch.manual_seed(0)
    fast = compiled(nn.LSTM(2, 2, **DOUBLE), Recording())
    inputs = [torch.randn(shape, **DOUBLE, requires_grad=True) for shape in [(3, 1, 2), (1, 1, 2)]]

    def states(x, c0):
        y, _, (layer,) = fast(x, (torch.zeros_like(c0), c0), return_states=True)
        return (y, *layer)

    assert torch.autograd.gradcheck(states, inputs)
    assert torch.autograd.gradgradcheck(states, inputs)
    assert torch.autograd.gradcheck(states, inputs, check_batched_grad=True)


@pytest.mark.parametrize("backend", ["eager", Recording()], ids=["eager", "own"])
def test_dropout_draws_as_in_eager_and_states_are_before_it(backend):
    torch.manual_seed(0)
    rnn = nn.LSTM(I, H, 2, dropout=0.5, **DOUBLE)
    x = torch.randn(T, B, I, **DOUBLE)
    torch.manual_seed(1)
    expected, _ = rnn(x)
    torch.manual_seed(1)
    y, _, states = compiled(rnn, backend)(x, return_states=True)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(states[0][0][:, 1], by_hand(rnn, x[:, 1])[0][0][0], **CLOSE)


@pytest.mark.parametrize("backend", ["auto", Recording()], ids=["auto", "own"])
def test_with_resets(backend):
    torch.manual_seed(0)
    rnn, reset = nn.LSTM(I, H, 2, **DOUBLE), torch.rand(T, B) < 0.4
    x = torch.randn(T, B, I, **DOUBLE, requires_grad=True)
    to = [torch.randn(2, T, B, H, **DOUBLE, requires_grad=True) for _ in range(2)]
    y, _, states = compiled(rnn, backend)(x, reset=reset, reset_to=to, return_states=True)

    def hand(b):
        def before(layer, t, states):
            return [each[layer, t, b, None] for each in to] if reset[t, b] else states

        return by_hand(rnn, x[:, b], before=before)[0]

    found = [hand(b) for b in range(B)]
    expected = [[torch.stack([each[i][s] for each in found], 1) for s in (0, 1)] for i in (0, 1)]
    torch.testing.assert_close([list(layer) for layer in states], expected, **CLOSE)
    torch.testing.assert_close(y, expected[1][0], **CLOSE)
    wanted, got = (
        torch.autograd.grad(sum(s.sin().sum() for layer in layers for s in layer), [x, *to])
        for layers in (expected, states)
    )
    torch.testing.assert_close(got, wanted, **CLOSE)
    y, _, states = compiled(rnn, backend)(x, reset=reset & False, return_states=True)
    torch.testing.assert_close(states[1][0], y, **CLOSE)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("backend", ["eager", Recording()], ids=["eager", "own"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_all_results_may_be_overwritten(kind, backend, first):
    torch.manual_seed(0)
    rnn = kind(I, H, 2, batch_first=first, **DOUBLE)
    x = torch.randn(B, T, I, **DOUBLE)
    grads = []
    for overwrite in (False, True):
        y, _, states = compiled(rnn, backend)(x, return_states=True)
        everything = [y, *(state for layer in states for state in layer)]
        loss = sum((each * (index + 1)).sum() for index, each in enumerate(everything))
        if overwrite:
            with torch.no_grad():
                kept = [each.clone() for each in everything]
                for index, each in enumerate(everything):
                    each.zero_()
                    assert all(map(torch.equal, kept[index + 1 :], everything[index + 1 :]))
                    assert each.stride() == y.stride()
        grads.append(torch.autograd.grad(loss, rnn.parameters()))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_without_gradients_nothing_is_recorded():
    rnn = nn.LSTM(I, H, 2)
    with torch.no_grad():
        y, (h, _), states = compiled(rnn, "auto")(torch.randn(T, B, I), return_states=True)
        expected = y.clone()
        states[1][0].zero_()
    assert torch.equal(y, expected)
    assert torch.equal(h[1], y[-1])
    assert not states[1][1].requires_grad


def test_states_of_packed_input_are_copies_too():
    packed = pack_sequence([torch.randn(length, I) for length in (3, 2)])
    with torch.no_grad():
        y, _, ((h, _),) = compiled(nn.LSTM(I, H), "auto")(packed, return_states=True)
    expected = y.data.clone()
    h.data.zero_()
    assert torch.equal(y.data, expected)


def test_data_that_was_exchanged_is_noticed():
    rnn = nn.LSTM(I, H)
    _, _, states = compiled(rnn, Recording())(torch.randn(T, B, I), return_states=True)
    rnn.weight_hh_l0.data = torch.zeros(4 * H, H)
    with pytest.raises(RuntimeError, match="was given other data after the forward pass"):
        states[0][1].sum().backward()


def test_hooks_for_saved_tensors():
    torch.manual_seed(0)
    rnn, x = nn.LSTM(I, H, **DOUBLE), torch.randn(T, B, I, **DOUBLE)
    fast, grads = compiled(rnn, Recording()), []
    for pack in (lambda tensor: tensor, lambda tensor: tensor.clone()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.clone()):
            _, _, states = fast(x, return_states=True)
        grads.append(torch.autograd.grad(states[0][1].sum(), rnn.parameters()))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


class Broken(Recording):
    """Its forward pass returns other states."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward_states(self, *args):
        output = super().forward_states(*args)
        return output._replace(states=self.change(output.states))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda states: (), "got 0"),
        (lambda states: states[0], "got Tensor"),
        (lambda states: (None,), "got a NoneType"),
        (lambda states: (states[0].double(),), r"got torch\.float64 \[15, 4\]"),
        (lambda states: (states[0][1:],), r"\[14, 4\]"),
        (lambda states: (states[0].t().contiguous().t(),), r"of strides \(1, 15\)"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_broken_contract(change, got, recorded):
    fast = compiled(nn.LSTM(I, H).requires_grad_(recorded), Broken(change))
    with pytest.raises(rnnjit.BackendError, match=f"states: expected 1 of them.*{got}"):
        fast(torch.randn(T, B, I), return_states=True)


def test_a_backend_must_not_write_to_its_inputs():
    class Writing(Recording):
        def forward_states(self, layer, rows, x, hx, weights, keep):
            hx[0].add_(1)
            return super().forward_states(layer, rows, x, hx, weights, keep)

    with pytest.raises(rnnjit.BackendError, match="one written to"):
        compiled(nn.LSTM(I, H), Writing())(torch.randn(T, B, I), return_states=True)


def test_a_backward_pass_that_fails_is_replaced_under_auto(monkeypatch):
    class Failing(Recording):
        name, priority, automatic = "failing", 1000, True

        def backward_states(self, *args):
            raise ArithmeticError("no")

    torch.manual_seed(0)
    rnn, x = nn.LSTM(I, H, **DOUBLE), torch.randn(T, B, I, **DOUBLE)
    expected = compiled(rnn, "eager")(x, return_states=True)[2][0][1]
    wanted = torch.autograd.grad(expected.sum(), rnn.parameters())
    with pytest.raises(ArithmeticError):
        compiled(rnn, Failing())(x, return_states=True)[2][0][1].sum().backward()
    backend, known = Failing(), rnnjit.backends()
    found = {"failing": backend, **known}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    found = compiled(rnn, "auto")(x, return_states=True)[2][0][1]
    assert backend.calls == ["forward"]
    with pytest.warns(rnnjit.RNNJitWarning, match="'failing' raised ArithmeticError"):
        got = torch.autograd.grad(found.sum(), rnn.parameters())
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_a_subclass_and_a_copy():
    class Mine(nn.LSTM):
        pass

    fast = copy.deepcopy(compiled(Mine(I, H), "auto"))
    x = torch.randn(T, B, I)
    y, _, ((h, c),) = fast(x, return_states=True)
    assert torch.equal(h, y)
    assert c.shape == (T, B, H)


def test_transforms_and_autocast_run_on_plain_operators():
    rnn, x = nn.LSTM(I, H), torch.randn(T, B, I)
    fast = compiled(rnn, Recording())

    def cells(x):
        return fast(x, return_states=True)[2][0][1]

    found = torch.func.vmap(cells, in_dims=1, out_dims=1)(x[:, :, None]).squeeze(2)
    torch.testing.assert_close(found, cells(x))
    with torch.autocast("cpu"):
        assert cells(x).sub(cells(x)).abs().max() < 0.1
    fast._flat_weights = [weight.clone() for weight in fast._flat_weights]
    with pytest.raises(RuntimeError, match="return_states needs a layer"):
        cells(x)


def test_explain_says_where_plain_operators_run():
    class Model(nn.Module):
        def __init__(self, rnn, backend):
            super().__init__()
            self.rnn = compiled(rnn, backend)

        def forward(self, x):
            return self.rnn(x, return_states=True)[2][0][0]

    x = torch.randn(T, B, I)
    (call,) = rnnjit.explain(Model(nn.LSTM(I, H), "eager"), x).calls
    assert call.note.endswith("step by step: backend 'eager' does not return c of every step")
    for rnn, backend in ((nn.GRU(I, H), "eager"), (nn.LSTM(I, H), Recording())):
        (call,) = rnnjit.explain(Model(rnn, backend), x).calls
        assert "step by step" not in call.note
