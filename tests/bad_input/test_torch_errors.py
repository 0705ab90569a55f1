"""Protects torch's own sentences in our errors, and what asking torch for them may do."""

import signal
import traceback
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from bad_calls import H0, PACKED, B, H, I, T, X, expect_eager, pair, raised, sentence, settings
from computing import usual
from odd_tensors import sparse
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit

LAYERS = [
    (nn.RNN, {}),
    (nn.RNN, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.GRU, {}),
]
#: nn.LSTM leaves out its checks for packed input: a malformed state ends the process.
CHECKED = [(kind, options) for kind, options in LAYERS if kind is not nn.LSTM]
#: What makes the input of a layer malformed; each leaves the rest as it is.
INPUTS = {
    "good": lambda x: x,
    "wide": lambda x: torch.cat([x, x], -1),
    "float64": torch.Tensor.double,
    "int64": torch.Tensor.long,
    "meta": lambda x: x.to("meta"),
    "empty": lambda x: x[:0],
    "1-D": lambda x: x[0, 0],
    "4-D": lambda x: x[None],
    "None": lambda x: None,
    "list": torch.Tensor.tolist,
}
SIZES = {
    "int32": torch.tensor([2, 1], dtype=torch.int32),
    "no sizes": torch.tensor([]).long(),
    "list of sizes": [2, 1],
}
STATES = {
    "good": lambda h: h,
    "batch": lambda h: torch.cat([h, h], 1),
    "width": lambda h: h[..., :-1],
    "layers": lambda h: torch.cat([h, h]),
    "float64": torch.Tensor.double,
    "complex": lambda h: h * 1j,
    "meta": lambda h: h.to("meta"),
    "2-D": lambda h: h[0],
    "4-D": lambda h: h[None],
    "list": torch.Tensor.tolist,
}


def layers(kind, options):
    torch.manual_seed(0)
    layer = kind(I, H, **options)
    return layer, rnnjit.compile(layer, backend=usual(kind))


def states(layer, change):
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or H, *([H] if isinstance(layer, nn.LSTM) else [])]
    made = [change(torch.randn(count, B, size)) for size in sizes]
    return made[0] if len(made) == 1 else tuple(made)


def words(module, *args):
    """The type and the words that a call raises; None if it raises nothing."""
    try:
        module(*args)
    except Exception as error:  # noqa: BLE001 - the type is what is compared
        return type(error), str(error).strip().partition("\n\n")[0]
    return None


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=lambda value: str(value))
def test_the_first_of_two_faults(kind, options):
    layer, fast = layers(kind, options)

    def given(first, second):
        x = INPUTS[first](X)
        if layer.batch_first and getattr(x, "ndim", 0) == 3:
            x = x.transpose(0, 1)
        return x, states(layer, STATES[second])

    expect_the_first_fault(layer, fast, given, INPUTS, STATES)


@pytest.mark.parametrize("order", [None, torch.tensor([1, 0])], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(("kind", "options"), CHECKED, ids=lambda value: str(value))
def test_the_first_of_two_faults_of_packed_input(kind, options, order):
    layer, fast = layers(kind, options)

    def given(first, second):
        x = PACKED._replace(sorted_indices=order, unsorted_indices=order)
        if first in SIZES:
            x = x._replace(batch_sizes=SIZES[first])
        else:
            x = x._replace(data=INPUTS[first](x.data))
        return x, states(layer, STATES[second])

    # Which fault comes first where tensors are on two devices depends on the layer.
    left = ("1-D", "4-D", "empty", "meta", "None", "list")
    inputs = [name for name in INPUTS if name not in left]
    hidden = [name for name in STATES if name != "meta"]
    expect_the_first_fault(layer, fast, given, [*inputs, *SIZES], hidden)


def expect_the_first_fault(layer, fast, given, inputs, hidden):
    """Eager's type and sentence for each pair, and our own words for the same one of the two."""
    said = {}
    for first, second in product(inputs, hidden):
        args = given(first, second)
        theirs, mine = words(layer, *args), words(fast, *args)
        if theirs is None:
            assert mine is None
            continue
        assert mine is not None
        assert mine[0] is theirs[0]
        assert theirs[1] in mine[1], (first, second)
        said[first, second] = theirs[1], mine[1].replace(theirs[1], "")
    for (first, second), (sentence_of_both, ours) in said.items():
        alone = [said.get((first, "good")), said.get(("good", second))]
        same = [other[1] for other in alone if other and other[0] == sentence_of_both]
        assert not same or ours in same, (first, second)


def test_sentences_that_others_match():
    rnn = rnnjit.compile(nn.RNN(10, 20))
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        rnn(torch.zeros(0, 3, 10))
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 3, 20\), got \[1, 4, 20\]"):
        rnn(torch.zeros(5, 3, 10), torch.zeros(1, 4, 20))
    cell = rnnjit.compile(nn.RNNCell(10, 20))
    with pytest.raises(RuntimeError, match="input has inconsistent input_size: got 11 expected 10"):
        cell(torch.zeros(3, 11))


def test_a_sentence_stands_once_and_before_ours():
    rnn, fast = pair()
    wrong = torch.zeros(1, 3, H)
    said = str(raised(fast, X, wrong).value)
    assert said.startswith(sentence(raised(rnn, X, wrong)) + ": hx must have shape [1, 2, 5]")
    theirs = str(raised(rnn, X.double()).value)
    said = str(raised(fast, X.double()).value)
    assert said.startswith(theirs)
    assert (said.count(theirs), said.count("Convert input")) == (1, 1)


@contextmanager
def torch_forward(monkeypatch, kind, replacement=None):
    """The calls of torch's own `forward` in the block, which does `replacement` instead."""
    calls, original = [], kind.forward

    def forward(self, *args):
        calls.append(args)
        return (replacement or original)(self, *args) if replacement is None else replacement()

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        yield calls


def fast_layer(kind, **options):
    return rnnjit.compile(kind(I, H, **options), backend=usual(kind))


STRIDED_SIZES = torch.tensor([2, 99, 1, 99])[::2]
OVERLAPPING_SIZES = torch.tensor([1]).expand(3)
NOT_ASKED = {
    "batch_sizes with gaps": (
        nn.RNN,
        lambda f: (PACKED._replace(batch_sizes=STRIDED_SIZES), [1.0]),
    ),
    "batch_sizes that overlap": (
        nn.RNN,
        lambda f: (PACKED._replace(batch_sizes=OVERLAPPING_SIZES), [1.0]),
    ),
    "packed input of an LSTM": (nn.LSTM, lambda f: (PACKED, (H0[None], H0[None]))),
    "batch_sizes that grow": (
        nn.LSTM,
        lambda f: (PACKED._replace(batch_sizes=torch.tensor([1, 2])),),
    ),
    "batch_sizes beyond the data": (
        nn.LSTM,
        lambda f: (PACKED._replace(batch_sizes=torch.tensor([2, 2])),),
    ),
    "batch_sizes that need terabytes": (
        nn.RNN,
        lambda f: (PACKED._replace(batch_sizes=torch.tensor([2**40])),),
    ),
    "batch_sizes in a list that need terabytes": (
        nn.RNN,
        lambda f: (PACKED._replace(batch_sizes=[2**40]),),
    ),
    "an order without memory": (
        nn.RNN,
        lambda f: (PACKED._replace(sorted_indices=torch.zeros(2, device="meta").long()), H0),
    ),
    "a state that needs terabytes": (nn.RNN, lambda f: (setattr(f, "hidden_size", 2**40) or X,)),
    "a weight that oneDNN would read": (
        nn.LSTM,
        lambda f: (setattr(f, "weight_hh_l0", nn.Parameter(torch.zeros(1, 1))) or X,),
    ),
    "a width that oneDNN would read": (nn.LSTM, lambda f: (setattr(f, "hidden_size", 50) or X,)),
}


@pytest.mark.parametrize("name", NOT_ASKED)
def test_torch_is_not_asked_where_it_does_not_check_what_it_reads(name, monkeypatch):
    kind, call = NOT_ASKED[name]
    fast = fast_layer(kind)
    args = call(fast)
    with torch_forward(monkeypatch, kind) as calls:
        assert "must" in str(raised(fast, *args).value) or "adds up" in str(
            raised(fast, *args).value
        )
    assert not calls


def test_good_calls_do_not_ask_torch(monkeypatch):
    fast = fast_layer(nn.RNN)
    with torch_forward(monkeypatch, nn.RNN) as calls:
        fast(X)
        fast(PACKED, H0)
    assert not calls


def test_sizes_beyond_the_data_have_torchs_sentence_all_the_same():
    rnn, fast = pair()
    for sizes in ([2, 2], [4]):
        given = PACKED._replace(batch_sizes=torch.tensor(sizes))
        assert sentence(raised(rnn, given)) in str(raised(fast, given).value)
    assert "start (0) + length" in str(
        raised(fast, PACKED._replace(batch_sizes=torch.tensor([2**62]))).value
    )


def test_asking_has_no_effect():
    fast = fast_layer(nn.RNN, num_layers=2, dropout=0.5)
    with torch.no_grad():
        fast.weight_hh_l1 = nn.Parameter(torch.zeros(6, 6))  # after the dropout
    hooked, kept = [], settings(fast)
    fast.register_forward_hook(lambda *args: hooked.append(args))
    fast.register_forward_pre_hook(lambda *args: hooked.append("pre"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert "weight_hh_l1 must" in str(raised(fast, X).value)
    assert torch.equal(torch.get_rng_state(), before)
    assert hooked == ["pre"]
    assert all(now is kept[name] for name, now in settings(fast).items())
    assert all(parameter.grad is None for parameter in fast.parameters())


@pytest.mark.parametrize("raising", [KeyboardInterrupt, TimeoutError, SystemExit])
def test_what_is_no_error_of_the_call_gets_through(raising, monkeypatch):
    def leave():
        raise raising("mine")

    rnn, fast = pair()
    with torch_forward(monkeypatch, nn.RNN, leave), pytest.raises(raising, match=r"^mine$"):
        fast(X[..., :1])
    expect_eager(rnn, fast)


class OwnError(RuntimeError):
    """Cannot be made of one string."""

    def __init__(self, first, second):
        super().__init__(first, second)


def test_an_exception_of_another_class_stays_itself(monkeypatch):
    mine = OwnError(1, 2)

    def leave():
        raise mine

    fast = fast_layer(nn.RNN)
    with torch_forward(monkeypatch, nn.RNN, leave):
        assert raised(fast, X[..., :1]).value is mine


def test_a_signal_during_our_checks_is_no_refusal(monkeypatch):
    fast = fast_layer(nn.RNN)

    def interrupted(*args):
        signal.raise_signal(signal.SIGALRM)

    def handler(*args):
        raise TimeoutError("mine")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        monkeypatch.setattr("rnnjit.frontend.lowering.capture", interrupted)
        with pytest.raises(TimeoutError, match=r"^mine$"):
            fast(X)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("call", ["dense", "packed", "cell"])
def test_the_traceback_is_short(call):
    if call == "cell":
        caught = raised(rnnjit.compile(nn.RNNCell(I, H)), [1.0])
    else:
        x = PACKED if call == "packed" else X
        caught = raised(fast_layer(nn.RNN), x, torch.zeros(1, 7, H))
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1
    assert len(shown.splitlines()) < 40
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not any(name.endswith("modules/rnn.py") for name in files)


def test_a_list_of_kernels_is_left_out():
    rnn, fast = pair()
    eager, ours = raised(rnn, sparse(X)), raised(fast, sparse(X))
    assert sentence(eager) in str(ours.value)
    assert len(str(ours.value)) < 2000


def test_resets_and_a_malformed_call():
    rnn, fast = pair()
    mask = torch.zeros(T, B, dtype=torch.bool)
    for args in ((X[..., :1],), (X, torch.zeros(1, 7, H)), (X.double(),)):
        eager = raised(rnn, *args)
        with pytest.raises(eager.type) as caught:
            fast(*args, reset=mask)
        assert sentence(eager) in str(caught.value)


def test_subclasses_are_asked_by_their_own_name():
    class Mine(nn.RNN):
        pass

    rnn = Mine(I, H)
    fast = rnnjit.compile(rnn)
    for module in (rnn, fast):
        del module.hidden_size
    assert sentence(raised(rnn, X)) in str(raised(fast, X).value)


def test_off_the_cpu_torch_is_asked_only_about_plain_tensors_and_sound_weights(monkeypatch):
    """Tensors of the CPU that are taken for those of a device."""
    monkeypatch.setattr("rnnjit.frontend.torch_errors._elsewhere", lambda tensor: True)
    fast = fast_layer(nn.RNN).eval()
    refused = torch.zeros(1, 7, H)
    growing = PackedSequence(torch.randn(3, I), torch.tensor([1, 2]))
    shuffled = PACKED._replace(unsorted_indices=torch.tensor([0, 9]))
    with torch_forward(monkeypatch, nn.RNN) as calls:
        raised(fast, X, refused)
        raised(fast, PACKED, refused)
        assert len(calls) == 2
        for args in ((sparse(X),), (X, sparse(refused)), (growing, refused), (shuffled, refused)):
            raised(fast, *args)
        monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
        monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
        raised(fast, X, refused)
        monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
        fast.weight_hh_l0 = nn.Parameter(torch.zeros(6, 6))
        raised(fast, X, refused)
        fast.weight_hh_l0 = nn.Parameter(torch.zeros(H, H))  # torch would move it
        raised(fast, X, refused)
        assert len(calls) == 2
