"""Protects half precision and autocast: as exact as eager, and explain names the backend."""

import copy
import re

import onednn
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.dispatch.choice import verdict
from rnnjit.testing import CASES
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest
from rnnjit.testing.user_cells import USER_CELLS
from rnnjit.tools.environment import environment

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
T, B, I, H = 20, 3, 8, 12
HALVES = [torch.bfloat16, torch.float16]


def make(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return nn.RNN(I, H, **options).to(dtype)


def inputs(dtype, packed=False):
    torch.manual_seed(1)
    x = torch.randn(T, B, I).to(dtype)
    return pack_padded_sequence(x, torch.tensor([T, 9, 4])) if packed else x


def results(module, x):
    """y, h_n and the gradients by x and the weights."""
    leaf = (x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x).requires_grad_()
    y, h_n = module(x)
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    loss = y.float().square().sum() + h_n.float().sum()
    grads = torch.autograd.grad(loss, [leaf, *module.parameters()])
    return y.detach(), h_n.detach(), *grads


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_half_precision_modules_are_as_exact_as_eager(options, dtype, packed):
    rnn = make(dtype, **options)
    found = results(rnnjit.compile(rnn), inputs(dtype, packed))
    eager = results(rnn, inputs(dtype, packed))
    wide = inputs(dtype, packed)
    truth = results(copy.deepcopy(rnn).double(), wide.to(torch.float64))
    for index, (got, own, exact) in enumerate(zip(found, eager, truth, strict=True)):
        expected = Expected(own, exact, largest(errors_of(own, exact)), largest(exact))
        judge(f"result {index}", "forward" if index < 2 else "backward", got, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_explain_says_who_runs_half_precision(dtype):
    report = rnnjit.explain(rnnjit.compile(make(dtype)), inputs(dtype)).calls[0]
    reasons = {verdict.backend.name: verdict.reasons for verdict in report.verdicts}
    assert report.problem.dtype == dtype
    assert not reasons[report.chosen]
    assert any(str(dtype) in reason for reason in reasons["tvm"])
    assert (report.chosen == "numba") is (dtype is torch.bfloat16)


@pytest.mark.parametrize(("backend", "dtype"), [("tvm", HALVES[1]), ("tvm", HALVES[0])], ids=str)
def test_a_named_backend_that_cannot_says_so(backend, dtype):
    module = rnnjit.compile(make(dtype), backend=backend)
    with pytest.raises(rnnjit.UnsupportedError, match=rf"{dtype} is not supported"):
        module(inputs(dtype))


def test_numba_runs_every_case_of_the_kit_in_bfloat16():
    cases = [case for case in CASES if case.dtype is torch.bfloat16]
    backend = rnnjit.backends()["numba"]
    for case in cases:
        assert not verdict(backend, case.lowered, case.problem(needs_grad=True)).reasons, case.id
    cells = {case.cell_name for case in cases}
    assert cells >= {"tanh", "relu", "lstm", "gru", "leaky", "timed", "integrator"}


#: Layers whose results torch promotes in different ways under autocast.
LAYERS = [
    (nn.RNN, {"num_layers": 2, "dropout": 0.5}),
    (nn.LSTM, {"bidirectional": True}),
    (nn.LSTM, {"proj_size": 5}),
    (nn.GRU, {"bias": False}),
]


def autocast_results(module, x, hx=None, *, enabled=True):
    """y, the last states, and the gradients by x and the weights, of a call under autocast."""
    torch.manual_seed(3)
    leaf = (x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        y, h_n = module(x, hx)
    outputs = [y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y]
    outputs += [h_n] if isinstance(h_n, torch.Tensor) else h_n
    loss = sum(part.double().square().sum() for part in outputs)
    grads = torch.autograd.grad(loss, [leaf, *module.parameters()])
    return [*(part.detach() for part in outputs), *grads]


def judge_autocast(found, eager, truth, outputs):
    """Hold results against eager's: in its dtypes, and as exact as bfloat16 is."""
    for index, (got, own, exact) in enumerate(zip(found, eager, truth, strict=True)):
        assert got.dtype == own.dtype
        half = own.bfloat16(), exact, largest(errors_of(own, exact)), largest(exact)
        which = "forward" if index < outputs else "backward"
        judge(f"result {index}", which, got.bfloat16(), Expected(*half))


@pytest.mark.usefixtures("onednn_where_it_runs")
@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("inner", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_autocast_is_as_exact_as_eager_s(kind, options, inner, packed, given):
    torch.manual_seed(0)
    rnn = kind(I, H, **options)
    fast = rnnjit.compile(rnn, backend="numba")
    hx, count = None, rnn.num_layers * (2 if rnn.bidirectional else 1)
    if given is not None:
        hx = torch.randn(count, B, rnn.proj_size or H).to(given)
        hx = (hx, torch.randn(count, B, H).to(given)) if kind is nn.LSTM else hx
    found, again, eager = (
        autocast_results(module, inputs(inner, packed), hx) for module in (fast, fast, rnn)
    )
    wide = tuple(state.double() for state in hx) if isinstance(hx, tuple) else hx
    wide = wide.double() if isinstance(wide, torch.Tensor) else wide
    x = inputs(inner, packed).to(torch.float64)
    truth = autocast_results(copy.deepcopy(rnn).double(), x, wide, enabled=False)
    judge_autocast(found, eager, truth, 3 if kind is nn.LSTM else 2)
    # The second call takes the fast path, if it is dense.
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.skipif(onednn.runs_bfloat16(), reason="torch's own nn.LSTM runs under autocast here")
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_autocast_runs_where_onednn_has_no_lstm_for_it(packed):
    rnn, x = nn.LSTM(I, H), inputs(torch.float32, packed)
    fast = rnnjit.compile(rnn, backend="numba")
    found = [autocast_results(fast, x, None) for _ in range(2)]
    with onednn.switched(enabled=False):
        expected = autocast_results(fast, x, None)
        assert [part.dtype for part in expected] == [
            part.dtype for part in autocast_results(rnn, x, None)
        ]
    for results in found:
        assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_under_autocast_are_as_exact_as_eager_s(kind):
    torch.manual_seed(0)
    cell = kind(I, H)
    fast, steps = rnnjit.compile(cell, backend="numba"), torch.randn(4, B, I)

    def states(module, x, *, enabled=True):
        hx, found = None, []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), torch.no_grad():
            for frame in x:
                hx = module(frame, hx)
                found += [hx] if isinstance(hx, torch.Tensor) else hx
        return found

    truth = states(copy.deepcopy(cell).double(), steps.double(), enabled=False)
    judge_autocast(states(fast, steps), states(cell, steps), truth, len(truth))


@pytest.mark.usefixtures("onednn_where_it_runs")
@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 2, 1)], ids=str)
def test_packed_results_have_eager_s_dtypes_whatever_the_lengths(lengths):
    """Torch runs an nn.LSTM by another operator, which promotes otherwise, for equal lengths."""
    rnn = nn.LSTM(I, H)
    x = pack_padded_sequence(torch.randn(4, 3, I), torch.tensor(lengths))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        (y, states), (expected, of_eager) = rnnjit.compile(rnn, backend="numba")(x), rnn(x)
    found = [y.data.dtype, *[state.dtype for state in states]]
    assert found == [expected.data.dtype, *[state.dtype for state in of_eager]]


@pytest.mark.parametrize(
    ("backend", "dtype"), [("eager", torch.bfloat16), ("numba", torch.float16)], ids=str
)
def test_torch_s_own_layer_runs_what_a_backend_does_not_under_autocast(backend, dtype):
    rnn = make(num_layers=2)
    fast, x = rnnjit.compile(rnn, backend=backend), inputs(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        (y, h_n), (expected, of_eager) = fast(x), rnn(x)
        report = rnnjit.explain(fast, x).calls[0]
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    assert torch.equal(h_n, of_eager)
    assert report.chosen == "torch"
    assert "autocast" in report.note


def test_float16_autocast_runs_on_the_backend_without_gradients():
    rnn = make(num_layers=2)
    fast, x = rnnjit.compile(rnn, backend="numba"), inputs(torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        (y, h_n), (own, of_eager) = fast(x), rnn(x)
        assert rnnjit.explain(fast, x).calls[0].chosen == "numba"
    with torch.no_grad():
        exact, _ = copy.deepcopy(rnn).double()(x.double())
    assert (y.dtype, h_n.dtype) == (own.dtype, of_eager.dtype)
    judge("y", "forward", y, Expected(own, exact, largest(errors_of(own, exact)), largest(exact)))


def test_explain_says_that_autocast_is_on():
    fast = rnnjit.compile(make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = rnnjit.explain(fast, inputs(torch.float32)).calls[0]
    assert report.chosen == "numba"
    assert report.problem.dtype == torch.bfloat16
    assert report.note == "autocast is enabled: it runs in torch.bfloat16"


def test_torch_s_generator_is_not_touched_under_autocast():
    fast, x = rnnjit.compile(nn.GRU(I, H, bias=False), backend="numba"), inputs(torch.float32)
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(x)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_read_anew_under_autocast():
    """Torch keeps casts of weights until it leaves the outermost context."""
    fast, x = rnnjit.compile(make(), backend="numba"), inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        first = fast(x)[0]
        fast.weight_ih_l0.zero_()
        second, expected = fast(x)[0], make()
        expected.weight_ih_l0.zero_()
        assert not torch.equal(first, second)
        torch.testing.assert_close(second, expected(x)[0], rtol=0.02, atol=0.02)


def test_second_gradients_under_autocast():
    rnn, found = make(), []
    for module in (rnn, rnnjit.compile(rnn, backend="numba")):
        x = inputs(torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = module(x)
        (slope,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), module.weight_hh_l0)[0])
    torch.testing.assert_close(*found, rtol=0.1, atol=0.1 * float(found[0].abs().max()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_dtypes_follow_torch_s_choice_of_an_operator_under_autocast(kind):
    """Without oneDNN torch promotes the states of an nn.LSTM to float32."""
    rnn, x = kind(I, H), torch.randn(T, B, I)
    fast = rnnjit.compile(rnn, backend="numba")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        for enabled in (True, False, True) if onednn.runs_bfloat16() else (False,):
            with onednn.switched(enabled=enabled):
                assert fast(x)[0].dtype == rnn(x)[0].dtype


def test_a_cell_of_the_user_runs_its_own_forward_under_autocast():
    torch.manual_seed(0)
    module, x = rnnjit.Recurrent(USER_CELLS["leaky"](I, H)), torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y, h), (expected, of_eager) = rnnjit.compile(module)(x), module(x)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    assert torch.equal(h, of_eager)


def test_autocast_may_change_between_calls():
    fast, x = rnnjit.compile(make(), backend="numba"), inputs(torch.float32)
    with torch.no_grad():
        alone = fast(x)[0]
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert fast(x)[0].dtype == torch.bfloat16
                with torch.autocast("cpu", dtype=torch.float16):
                    assert fast(x)[0].dtype == torch.float16
                with torch.autocast("cpu", enabled=False):
                    assert torch.equal(fast(x)[0], alone)


def test_autocast_switched_off_inside_is_compiled_again():
    fast = rnnjit.compile(make())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert rnnjit.explain(fast, inputs(torch.float32)).calls[0].chosen == "numba"
        assert fast(inputs(torch.float32))[0].dtype == torch.float32


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
@pytest.mark.parametrize("steps", [1, T])
def test_the_fast_path_gives_the_bits_of_the_full_path(kind, options, steps):
    rnn = kind(I, H, **{**options, "dropout": 0.0}, dtype=torch.bfloat16)
    fast, x = rnnjit.compile(rnn, backend="numba"), inputs(torch.bfloat16)[:steps]
    packed = pack_padded_sequence(x, torch.full((B,), steps))
    dense, again, full = (gradients(fast, given) for given in (x, x, packed))
    assert fast._fast_paths
    for one, other, expected in zip(dense, again, full, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, expected.view_as(one))


def gradients(module, x):
    """y, the last states and the gradients by the weights, and without gradients y and these."""
    with torch.no_grad():
        plain = flat(module(x))
    recorded = flat(module(x))
    loss = sum(part.float().square().sum() for part in recorded)
    return [*plain, *torch.autograd.grad(loss, list(module.parameters()))]


def flat(results):
    y, h_n = results
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    return [y, *([h_n] if isinstance(h_n, torch.Tensor) else h_n)]


@pytest.mark.parametrize(("isa", "how"), [("", "pair|each"), ("avx2", "a multiply-add for each")])
def test_info_says_how_bfloat16_is_multiplied(isa, how, monkeypatch):
    if isa and "avx2" not in environment().features:
        pytest.skip("the processor has no AVX2")
    monkeypatch.setenv("RNNJIT_ISA", isa)
    numba = next(each for each in environment().backends if each.name == "numba")
    assert re.search(how, numba.choices["products of bfloat16"])
