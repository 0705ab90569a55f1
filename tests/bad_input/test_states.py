"""Protects malformed states of nn.LSTM and nn.GRU: eager's exception, words, and a usable layer."""

import pytest
import torch
from bad_calls import H0, PACKED, B, H, I, Row, X, expect_refusal, raised
from computing import usual
from odd_tensors import mkldnn, nested, sparse, sparse_rows
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit

P = 3
C0 = torch.randn(1, B, H, generator=torch.Generator().manual_seed(1))
ORDER = torch.tensor([1, 0])
UNSORTED = PACKED._replace(sorted_indices=ORDER, unsorted_indices=ORDER)
INPUTS = {"dense": X, "unbatched": X[:, 0], "sorted": PACKED, "unsorted": UNSORTED}


def pair(kind, **options):
    torch.manual_seed(0)
    layer = kind(I, H, **options)
    return layer, rnnjit.compile(layer, backend=usual(kind))


def flat(output):
    y, last = output
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *last] if isinstance(last, tuple) else [y, last]


def expect_eager(layer, fast):
    """Good calls give eager's values, the second time by a short way, and gradients."""
    for given in (X, X, PACKED):
        with torch.no_grad():
            torch.testing.assert_close(flat(fast(given)), flat(layer(given)))
    grads = [
        torch.autograd.grad(sum(part.sin().sum() for part in flat(m(X))), list(layer.parameters()))
        for m in (layer, fast)
    ]
    torch.testing.assert_close(grads[1], grads[0])


# From h and c of the input's form to what is given instead.
FORMS = {
    "a tensor": lambda h, c: h,
    "stacked": lambda h, c: torch.stack([h, c]),
    "one stacked": lambda h, c: h[None],
    "a tensor without dimensions": lambda h, c: torch.tensor(1.0),
    "a list": lambda h, c: [h, c],
    "none": lambda h, c: (),
    "one": lambda h, c: (h,),
    "three": lambda h, c: (h, c, h),
    "three, the last None": lambda h, c: (h, c, None),
    "a list of one": lambda h, c: [h],
    "h and None": lambda h, c: (h, None),
    "None and c": lambda h, c: (None, c),
    "Nones": lambda h, c: (None, None),
    "numbers": lambda h, c: (0.0, 0.0),
    "lists": lambda h, c: (h.tolist(), c.tolist()),
    "pairs": lambda h, c: ((h, c), (h, c)),
    "a number": lambda h, c: 0,
}


@pytest.mark.parametrize("form", INPUTS)
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_two_states(name, form):
    """None of these reaches a kernel of torch unless it is good."""
    layer, fast = pair(nn.LSTM)
    x, (h, c) = INPUTS[form], (H0, C0)
    if form == "unbatched":
        h, c = h[:, 0], c[:, 0]
    hx = FORMS[name](h, c)
    for _ in range(2):
        try:
            want = layer(x, hx)
        except Exception:  # noqa: BLE001 - whatever it is, it is compared below
            assert raised(fast, x, hx).type is raised(layer, x, hx).type
        else:
            torch.testing.assert_close(flat(fast(x, hx)), flat(want))
        expect_eager(layer, fast)


SHAPE = r"hx\[{}\] must have shape \[1, 2, {}\] .* got \[{}\]"
BAD_PAIRS = {
    "a tensor": (H0, r"hx must be a tuple of 2 states \(h, c\), got Tensor"),
    "one": ((H0,), "hx must be a tuple of 2 states, got 1"),
    "h and None": ((H0, None), r"hx\[1\] must be a Tensor, got NoneType"),
    "h of another batch": ((H0[:, :1], C0), SHAPE.format(0, 5, "1, 1, 5")),
    "c of another batch": ((H0, C0[:, :1]), SHAPE.format(1, 5, "1, 1, 5")),
    "both of another batch": ((H0[:, :1], C0[:, :1]), SHAPE.format(0, 5, "1, 1, 5")),
    "h narrower": ((H0[..., 1:], C0), SHAPE.format(0, 5, "1, 2, 4")),
    "c narrower": ((H0, C0[..., 1:]), SHAPE.format(1, 5, "1, 2, 4")),
    "c of two layers": ((H0, torch.cat([C0, C0])), SHAPE.format(1, 5, "2, 2, 5")),
    "c without batch": ((H0, C0[:, :0]), SHAPE.format(1, 5, "1, 0, 5")),
    "c 2-D": ((H0, C0[0]), r"hx\[1\] must be 3-D like the batched input, got 2-D"),
    "h 4-D": ((H0[None], C0), r"hx\[0\] must be 3-D like the batched input, got 4-D"),
    "h float64": ((H0.double(), C0), r"hx\[0\] is torch.float64 but the weights are torch.float32"),
    "c float64": ((H0, C0.double()), r"hx\[1\] is torch.float64 but the weights are torch.float32"),
    "c float16": ((H0, C0.half()), r"hx\[1\] is torch.float16 but the weights are torch.float32"),
    "c int64": ((H0, C0.long()), r"hx\[1\] is torch.int64 but the weights are torch.float32"),
    "c complex": ((H0, C0 * 1j), r"hx\[1\] is torch.complex64 but the weights are torch.float32"),
    "h on meta": ((H0.to("meta"), C0), r"hx\[0\] is on meta but the weights are on cpu"),
    "c on meta": ((H0, C0.to("meta")), r"hx\[1\] is on meta but the weights are on cpu"),
    "c sparse": ((H0, sparse(C0)), r"hx\[1\] must be a dense tensor, got one of layout"),
    "c nested": ((H0, nested(1, B, H)), r"hx\[1\] must be a dense tensor, got a nested one"),
    "c MKL-DNN's": ((H0, mkldnn(C0)), r"hx\[1\] must be a dense tensor, got one of layout"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs(name):
    hx, message = BAD_PAIRS[name]
    layer, fast = pair(nn.LSTM)
    expect_eager(layer, fast)  # so that there are short ways to be led astray
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            expect_refusal(Row(lambda module: module(X, hx), message), layer, fast)
    expect_eager(layer, fast)


#: Torch is not asked about these, and does not check them: it ends the process at some.
PACKED_PAIRS = {
    "h of another batch": ((H0[:, :1], C0), SHAPE.format(0, 5, "1, 1, 5")),
    "c of another batch": ((H0, C0[:, :1]), SHAPE.format(1, 5, "1, 1, 5")),
    "c narrower": ((H0, C0[..., 1:]), SHAPE.format(1, 5, "1, 2, 4")),
    "c of two layers": ((H0, torch.cat([C0, C0])), SHAPE.format(1, 5, "2, 2, 5")),
    "c 2-D": ((H0, C0[0]), SHAPE.format(1, 5, "2, 5")),
    "c float64": BAD_PAIRS["c float64"],
    "c on meta": BAD_PAIRS["c on meta"],
    "c sparse": BAD_PAIRS["c sparse"],
    "c nested": BAD_PAIRS["c nested"],
}


@pytest.mark.parametrize("name", PACKED_PAIRS)
def test_bad_pairs_of_packed_input(name):
    hx, message = PACKED_PAIRS[name]
    layer, fast = pair(nn.LSTM)
    fast(PACKED, (H0, C0))  # so that there is a fast path
    with pytest.raises(RuntimeError, match=message):
        fast(PACKED, hx)
    expect_eager(layer, fast)


#: With a projection h is P wide and c is H wide.
BAD_PROJECTED = {
    "both H wide": (
        (H0, C0),
        r"hx\[0\] must have shape \[1, 2, 3\] .*proj_size\), got \[1, 2, 5\]",
    ),
    "both P wide": ((H0[..., :P], C0[..., :P]), SHAPE.format(1, 5, "1, 2, 3")),
    "swapped": ((H0, C0[..., :P]), r"hx\[0\] must have shape \[1, 2, 3\] .*, got \[1, 2, 5\]"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", BAD_PROJECTED)
def test_bad_states_of_a_projection(name):
    hx, message = BAD_PROJECTED[name]
    layer, fast = pair(nn.LSTM, proj_size=P)
    expect_refusal(Row(lambda module: module(X, hx), message), layer, fast)
    good = H0[..., :P], C0
    torch.testing.assert_close(flat(fast(X, good)), flat(layer(X, good)))


BAD_SINGLE = {
    "a tuple": ((H0,), "hx must be a Tensor or None, got tuple"),
    "h and c": ((H0, C0), "hx must be a Tensor or None, got tuple"),
    "a list": ([H0], "hx must be a Tensor or None, got list"),
    "another batch": (H0[:, :1], r"hx must have shape \[1, 2, 5\].* got \[1, 1, 5\]"),
    "narrower": (H0[..., 1:], r"hx must have shape \[1, 2, 5\].* got \[1, 2, 4\]"),
    "2-D": (H0[0], "hx must be 3-D like the batched input, got 2-D"),
    "float64": (H0.double(), "hx is torch.float64 but the weights are torch.float32"),
    "on meta": (H0.to("meta"), "hx is on meta but the weights are on cpu"),
    "sparse": (sparse(H0), "hx must be a dense tensor, got one of layout"),
    "sparse rows": (sparse_rows(H0), "hx must be a dense tensor, got one of layout"),
    "MKL-DNN's": (mkldnn(H0), "hx must be a dense tensor, got one of layout"),
}


@pytest.mark.parametrize("form", ["dense", "sorted"])
@pytest.mark.parametrize("name", BAD_SINGLE)
def test_bad_states_of_a_gru(name, form):
    hx, message = BAD_SINGLE[name]
    layer, fast = pair(nn.GRU)
    if form == "sorted":
        message = message.replace("must be 3-D like the batched input, got 2-D", "must have shape")
    expect_refusal(Row(lambda module: module(INPUTS[form], hx), message), layer, fast)
    expect_eager(layer, fast)


BAD_INPUTS = {
    "features": (torch.zeros(3, B, 7), r"input_size=4 .* got 7: shape \[3, 2, 7\]"),
    "float64": (X.double(), "RNN input dtype .torch.float64. does not match weight dtype"),
    "1-D": (X[0, 0], "input must be 2-D .* got 1-D"),
    "on meta": (X.to("meta"), "input is on meta but the weights are on cpu"),
    "no time steps": (X[:0], "at least one time step"),
    "None": (None, "input must be a Tensor .* got NoneType"),
    "a list": (X.tolist(), "input must be a Tensor .* got list"),
    "sparse": (sparse(X), "input must be a dense tensor"),
    "nested": (nested(3, B, I), "input must be a dense tensor, got a nested one"),
}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(name, kind):
    x, message = BAD_INPUTS[name]
    layer, fast = pair(kind)
    expect_refusal(Row(lambda module: module(x), message), layer, fast)
    expect_eager(layer, fast)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_sparse_state_is_taken_where_eager_takes_it(kind):
    layer, fast = pair(kind)
    if kind is nn.LSTM:
        torch.testing.assert_close(flat(fast(X, (sparse(H0), C0))), flat(layer(X, (H0, C0))))
    packed = PACKED._replace(data=sparse(PACKED.data))
    torch.testing.assert_close(flat(fast(packed)), flat(layer(PACKED)))


SETTINGS = [
    (nn.LSTM, "bias", 1, "bias must be a bool, got 1"),
    (nn.GRU, "bias", 1, "bias must be a bool, got 1"),
    (nn.GRU, "bias", False, "the module has 4 weights, but its configuration needs 2"),
    (nn.GRU, "hidden_size", 7, r"weight_ih_l0 must have shape \[21, 4\], got \[15, 4\]"),
    (nn.GRU, "num_layers", 2, "the module has 4 weights, but its configuration needs 8"),
    (nn.LSTM, "dropout", "half", "dropout must be a number, got 'half'"),
    (nn.LSTM, "bidirectional", None, "bidirectional must be a bool, got None"),
    (nn.LSTM, "proj_size", None, "proj_size must be an int, got None"),
    (nn.LSTM, "proj_size", "2", "proj_size must be an int, got '2'"),
]


@pytest.mark.parametrize(("kind", "name", "value", "message"), SETTINGS)
def test_bad_settings(kind, name, value, message):
    layer, fast = pair(kind)
    kept = getattr(layer, name)
    for module in (layer, fast):
        setattr(module, name, value)
    row = Row(lambda module: module(X), message, asked=kind is nn.GRU)
    expect_refusal(row, layer, fast)
    for module in (layer, fast):
        setattr(module, name, kept)
    expect_eager(layer, fast)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {"proj_size": H}), (nn.LSTM, {"proj_size": -1}), (nn.GRU, {"proj_size": 2})],
)
def test_layers_that_torch_does_not_construct(kind, options):
    """The class of a compiled layer constructs what torch's own does."""
    eager = raised(lambda: kind(I, H, **options))
    ours = raised(lambda: type(pair(kind)[1])(I, H, **options))
    assert ours.type is eager.type
    assert str(ours.value) == str(eager.value)
