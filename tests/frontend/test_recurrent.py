"""Protects the uncompiled Recurrent: torch's conventions, and the cells' own forward in a loop."""

import copy
import io
import pickle

import pytest
import torch
from cut_by_hand import cut_by_hand
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from user_cells import LSTM, LeakyRNN, Normed, PeepholeLSTM

import rnnjit

LENGTHS = [3, 4, 1, 2, 4]


def pair(bidirectional=False, batch_first=False, dropout=0.0, layers=2, dtype=torch.float64):
    """nn.LSTM, and the same cell written again with the same weights."""
    torch.manual_seed(0)
    theirs = nn.LSTM(
        *(3, 5, layers),
        batch_first=batch_first,
        dropout=dropout,
        bidirectional=bidirectional,
        dtype=dtype,
    )
    ours = rnnjit.Recurrent(LSTM(3, 5, dtype=dtype), layers, dropout, bidirectional, batch_first)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def states(layers, *batch):
    return tuple(draw(layers, *batch, 5) for _ in range(2))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_it_gives_the_values_and_gradients_of_nn_lstm(bidirectional, batch_first):
    theirs, ours = pair(bidirectional, batch_first, dropout=0.4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, hx = draw(4, 5, 3), states(4 if bidirectional else 2, 4 if batch_first else 5)
    found = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        torch.manual_seed(3)
        y, (h, c) = module(given, hx)
        grad = torch.autograd.grad((y * y).sum() + h.sin().sum() + c.cos().sum(), given)
        found.append((y.detach(), h.detach(), c.detach(), *grad))
        assert y.is_contiguous() is not batch_first
    close(found[1], found[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_it_takes_packed_and_unbatched_input(batch_first):
    theirs, ours = pair(True, batch_first)
    x = draw(5, 4, 3)
    given = x if batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(given, LENGTHS, batch_first=batch_first, enforce_sorted=False)
    for hx in (None, states(4, 5)):
        (expected, last), (y, end) = theirs(packed, hx), ours(packed, hx)
        assert isinstance(y, PackedSequence)
        close((y.data, *end), (expected.data, *last))
    for hx in (None, states(4)):
        close(ours(x[0], hx), theirs(x[0], hx))


def test_it_takes_an_empty_batch_and_one_step():
    theirs, ours = pair(True)
    y, (h, c) = ours(draw(4, 0, 3))
    assert y.shape == (4, 0, 10)
    assert h.shape == c.shape == (4, 0, 5)
    x = draw(1, 2, 3)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_resets_are_those_of_sequences_cut_by_hand(bidirectional):
    theirs, ours = pair(bidirectional)
    D = 2 if bidirectional else 1
    x, hx = draw(6, 4, 3), states(2 * D, 4)
    reset = torch.rand(6, 4) < 0.3
    reset[0, 1] = reset[5, 2] = True
    to = (draw(2, 6, 4, 5 * D), draw(2, 6, 4, 5 * D))
    for anew in (to, tuple(map(torch.zeros_like, to))):
        y, h, c = cut_by_hand(theirs, x, hx, reset, anew)
        given = anew if anew is to else None
        found, (h_n, c_n) = ours(x, hx, reset, given)
        close((found, h_n, c_n), (y, h, c))
        ours.batch_first = True
        mine = given and tuple(each.transpose(1, 2) for each in given)
        found, (h_n, c_n) = ours(x.transpose(0, 1), hx, reset.t(), mine)
        close((found.transpose(0, 1), h_n, c_n), (y, h, c))
        ours.batch_first = False


def test_the_states_of_every_step_are_those_of_shorter_calls():
    ours = rnnjit.Recurrent(LSTM(3, 5, dtype=torch.float64), 2, batch_first=True)
    x = draw(2, 4, 3)
    y, _, every = ours(x, return_states=True)
    close(every[1][0], y)
    for t in range(4):
        _, (h, c) = ours(x[:, : t + 1])
        for layer, (hs, cs) in enumerate(every):
            close((hs[:, t], cs[:, t]), (h[layer], c[layer]))
    packed = pack_padded_sequence(x, [4, 4], batch_first=True)
    _, _, of_rows = ours(packed, return_states=True)
    close(of_rows[1][1].data.view(4, 2, 5).transpose(0, 1), every[1][1])


def test_random_draws_and_resets_are_those_of_a_loop_over_dense_steps():
    torch.manual_seed(0)
    ours = rnnjit.Recurrent(LeakyRNN(3, 5)).double()
    x, reset, v = draw(6, 4, 3), torch.rand(6, 4) < 0.4, draw(4, 5)
    p = dict(ours.named_parameters())
    w, u, b, alpha = (
        p["weight_ih_l0"],
        p["weight_hh_l0"],
        p["bias_ih_l0"] + p["bias_hh_l0"],
        p["alpha_l0"],
    )
    torch.manual_seed(5)
    found, last = ours(x, v[None], reset)
    torch.manual_seed(5)
    for t in range(6):
        v = torch.where(reset[t][:, None], 0.0, v)
        z = x[t] @ w.T + torch.relu(v) @ u.T + b
        v = (1 - alpha) * v + alpha * z + 0.1 * torch.randn(4, 5, dtype=torch.float64)
        close(found[t], torch.relu(v))
    close(last[0], v)


def test_parameters_and_buffers_have_flat_names():
    module = rnnjit.Recurrent(Normed(3, 5), 2)
    assert {"norm_weight_l0", "norm_bias_l1", "weight_ih_l1"} <= dict(
        module.named_parameters()
    ).keys()
    assert [name for name, _ in module.named_buffers()] == ["signs_l0", "signs_l1"]
    assert not list(module.children())
    assert module.weight_ih_l1.shape == (5, 5)


def test_the_cells_parameters_become_the_modules():
    cell = PeepholeLSTM(3, 5)
    module = rnnjit.Recurrent(cell, bidirectional=True)
    assert module.p_l0 is cell.p
    assert module.p_l0_reverse is not cell.p
    assert module.p_l0_reverse.shape == (3, 5)


def test_attributes_of_the_cells_count_from_the_next_call_on():
    module = rnnjit.Recurrent(LeakyRNN(3, 5, sigma=0.0))
    x = torch.randn(4, 2, 3)
    without = module(x)[0]
    module.cells[0].sigma = 1.0
    assert not torch.equal(module(x)[0], without)
    module.eval()
    torch.testing.assert_close(module(x)[0], without)


def test_copies_pickles_and_conversions():
    module = rnnjit.Recurrent(Normed(3, 5), 2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    expected = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for each in (*copies, torch.load(file, weights_only=False)):
        torch.testing.assert_close(each(x), expected, rtol=0, atol=0)
        with torch.no_grad():
            each.weight_ih_l0.zero_()
        assert not torch.equal(each(x)[0], expected[0])
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    y, _ = copy.deepcopy(module).double()(x.double())
    torch.testing.assert_close(y, expected[0].double(), rtol=1e-4, atol=1e-5)
    other = rnnjit.Recurrent(Normed(3, 5), 2, bidirectional=True)
    other.load_state_dict(module.state_dict(), assign=True)
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


def test_parametrizations_and_functional_calls_reach_the_cells():
    torch.manual_seed(0)
    module = rnnjit.Recurrent(LSTM(3, 5))
    x = torch.randn(4, 2, 3)
    values = {name: torch.randn_like(each) for name, each in module.named_parameters()}
    theirs = nn.LSTM(3, 5)
    theirs.load_state_dict(values)
    found = torch.func.functional_call(module, values, (x,))
    torch.testing.assert_close(found, theirs(x))
    module.load_state_dict(values)
    weight_norm(module, "weight_hh_l0")
    module.parametrizations.weight_hh_l0.original0.data.mul_(2)
    theirs.weight_hh_l0.data.mul_(2)
    torch.testing.assert_close(module(x), theirs(x))


class AnyName(rnnjit.Cell):
    """A state by the name of an output of programs."""

    def __init__(self, input_size):
        super().__init__(input_size, 5, states=("out",))

    def forward(self, x, out):
        return torch.tanh(self.ih(x) + self.hh(out))


def test_states_may_have_any_name():
    module = rnnjit.Recurrent(AnyName(3), 2)
    theirs = nn.RNN(3, 5, 2)
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(module(x), theirs(x))
    torch.testing.assert_close(rnnjit.compile(module)(x), theirs(x))


def test_reset_parameters_draws_anew():
    module = rnnjit.Recurrent(LSTM(3, 4), 2)
    before = module.weight_hh_l1.detach().clone()
    module.reset_parameters()
    assert not torch.equal(module.weight_hh_l1, before)
    assert module.weight_hh_l1.abs().max() <= 0.5


def test_its_repr_shows_the_cell_and_what_is_no_default():
    module = rnnjit.Recurrent(LSTM(3, 5), 2, bidirectional=True)
    assert repr(module) == (
        "Recurrent(LSTM(3, 5, gates=4, states=(h, c)), num_layers=2, bidirectional=True)"
    )


class Wide(rnnjit.Cell):
    """A cell of which tests say what it returns."""

    def forward(self, x, h):
        return self.result(h)


@pytest.mark.parametrize(
    ("result", "kind", "said"),
    [
        (lambda h: None, TypeError, "got NoneType"),
        (lambda h: (h, h, h), TypeError, "got 3 results"),
        (lambda h: (h, 1.0), TypeError, "got float as result 1"),
        (lambda h: h[:, :2], RuntimeError, r"\[2, 5\].*got \[2, 2\]"),
    ],
)
def test_wrong_results_of_a_cell(result, kind, said):
    cell = Wide(3, 5)
    cell.result = result
    with pytest.raises(kind, match=said):
        rnnjit.Recurrent(cell)(torch.zeros(4, 2, 3))


def test_the_states_may_be_a_tuple_of_their_own():
    class Nested(LSTM):
        def forward(self, x, h, c):
            h, c = super().forward(x, h, c)
            return h, (h, c)

    cells = [torch.manual_seed(0) and kind(3, 5) for kind in (LSTM, Nested)]
    expected, found = (rnnjit.Recurrent(cell)(torch.ones(4, 2, 3)) for cell in cells)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Unsized(rnnjit.Cell):
    """A cell whose constructor takes no input size."""

    def __init__(self):
        super().__init__(3, 5)


class Colliding(rnnjit.Cell):
    """A cell with two tensors of one flat name."""

    def __init__(self, input_size):
        super().__init__(input_size, 5)
        self.a_weight = nn.Parameter(torch.zeros(5))
        self.a = nn.Linear(5, 5)


class Unmade(rnnjit.Cell):
    """A cell whose constructor does not call that of its base."""

    def __init__(self, size):
        self.size = size


def changed():
    cell = LSTM(3, 5)
    cell.extra = nn.Parameter(torch.zeros(5))
    return cell


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: rnnjit.Recurrent(nn.LSTMCell(3, 5)), TypeError, "rnnjit.Cell, got LSTMCell"),
        (lambda: rnnjit.Recurrent(LSTM), TypeError, "instance .* got the class LSTM"),
        (lambda: rnnjit.Recurrent(Unmade(3)), TypeError, r"super\(\).__init__.* Unmade.__init__"),
        (lambda: rnnjit.Recurrent(LSTM(3, 5), 2.0), TypeError, "num_layers"),
        (lambda: rnnjit.Recurrent(LSTM(3, 5), 0), ValueError, "num_layers"),
        (lambda: rnnjit.Recurrent(LSTM(3, 5), 2, 1.5), ValueError, "dropout"),
        (lambda: rnnjit.Recurrent(LSTM(3, 5), 2, True), ValueError, "dropout"),
        (lambda: rnnjit.Recurrent(LSTM(3, 5), 2, 0.0, 1), TypeError, "bidirectional"),
        (lambda: rnnjit.Recurrent(Unsized(), 2), TypeError, "input_size"),
        (lambda: rnnjit.Recurrent(changed(), 2), ValueError, "changed after its construction"),
        (lambda: rnnjit.Recurrent(Colliding(3)), ValueError, "'a_weight_l0'"),
    ],
)
def test_wrong_arguments_of_the_constructor(make, kind, said):
    with pytest.raises(kind, match=said):
        make()


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="between layers"):
        rnnjit.Recurrent(LSTM(3, 5), dropout=0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(torch.zeros(4, 2, 4)),
        lambda m: m(torch.zeros(4)),
        lambda m: m([1.0]),
        lambda m: m(torch.zeros(4, 2, 3, dtype=torch.float64)),
        lambda m: m(torch.zeros(0, 2, 3)),
        lambda m: m(torch.zeros(4, 2, 3), (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))),
        lambda m: m(torch.zeros(4, 3), (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))),
    ],
)
def test_errors_of_calls_have_the_types_of_torchs(call):
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever torch raises
        call(nn.LSTM(3, 5))
    with pytest.raises(theirs.type):
        call(rnnjit.Recurrent(LSTM(3, 5)))


def test_errors_of_states():
    module, x = rnnjit.Recurrent(LSTM(3, 5)), torch.zeros(4, 2, 3)
    with pytest.raises(TypeError, match=r"tuple of 2 states \(h, c\)"):
        module(x, torch.zeros(1, 2, 5))
    with pytest.raises(RuntimeError, match="got 1"):
        module(x, (torch.zeros(1, 2, 5),))


def test_errors_of_resets():
    module, x = rnnjit.Recurrent(LSTM(3, 5)), torch.zeros(4, 2, 3)
    with pytest.raises(TypeError, match="reset_to needs reset"):
        module(x, None, None, (torch.zeros(1, 5), torch.zeros(1, 5)))
    with pytest.raises(TypeError, match="boolean"):
        module(x, None, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="shape of input"):
        module(x, None, torch.zeros(4, 3, dtype=torch.bool))
