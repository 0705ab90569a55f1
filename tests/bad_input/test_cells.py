"""Protects malformed calls of torch's cells: eager's exception and sentence, for a whole table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from bad_calls import B, H, I, raised, sentence
from computing import usual
from odd_tensors import jagged, mkldnn, nested, quantized, sparse, sparse_rows
from torch import nn

import rnnjit

X, HX = torch.randn(B, I), torch.randn(B, H)
#: A tensor of each rank; a state of rank 2 fits an input of rank 2, and one of rank 1 one of 1.
INPUTS = [torch.randn(I).sum(), torch.randn(I), X, torch.randn(1, B, I), torch.randn(1, 1, B, I)]
STATES = [HX.sum(), HX[0], HX, HX[None], HX[None, None]]
RANKS = {
    f"ranks {x.dim()} and {hx.dim()}": (x, hx)
    for x in INPUTS
    for hx in (*STATES, torch.randn(1, H), torch.randn(B))
}
#: Each makes a tensor of another kind of one that a cell takes.
KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "float64": torch.Tensor.double,
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "int64": torch.Tensor.long,
    "bool": torch.Tensor.bool,
    "complex": lambda t: t * 1j,
    "meta": lambda t: t.to("meta"),
    "narrower": lambda t: t[..., :-1],
    "wider": lambda t: torch.cat([t, t], -1),
    "without width": lambda t: t[..., :0],
    "longer": lambda t: torch.cat([t, t]),
    "without batch": lambda t: t[:0],
    "quantized": quantized,
    "nested": lambda t: nested(*t.shape),
    "jagged": lambda t: jagged(*t.shape),
    "sparse": sparse,
    "sparse rows": sparse_rows,
    "MKL-DNN's": mkldnn,
    "None": lambda t: None,
    "list": torch.Tensor.tolist,
    "tuple": lambda t: (t, t),
    "numpy": torch.Tensor.numpy,
    "number": lambda t: 0,
    "text": lambda t: "x",
    "class": lambda t: torch.Tensor,
}
KINDS_OF_ONE = {
    f"{which} {name}": (make(X), HX) if which == "input" else (X, make(HX))
    for which in ("input", "hx")
    for name, make in KINDS.items()
}
#: The same of an nn.LSTMCell: h and c alike, and each of them alone.
PAIRS = {
    **{name: (x, (hx, hx)) for name, (x, hx) in RANKS.items()},
    **{
        f"ranks {x.dim()} and good and {c.dim()}": (x, (h, c))
        for x, h in ((X[0], HX[0]), (X, HX))
        for c in (*STATES, HX[:, 0])
    },
    **{f"input {name}": (make(X), (HX, HX)) for name, make in KINDS.items()},
    **{f"h {name}": (X, (make(HX), HX)) for name, make in KINDS.items()},
    **{f"c {name}": (X, (HX, make(HX))) for name, make in KINDS.items()},
    **{
        f"c {name}, unbatched": (X[0], (HX[0], make(HX[0])))
        for name, make in KINDS.items()
        if make not in (KINDS["nested"], KINDS["jagged"], sparse_rows)
    },
}
#: What is no pair of states.
NO_PAIRS: dict[str, tuple[Any, ...]] = {
    "none": (X, ()),
    "one": (X, (HX,)),
    "three": (X, (HX, HX, HX)),
    "three, the last None": (X, (HX, HX, None)),
    "a tensor": (X, HX),
    "stacked": (X, torch.stack([HX, HX])),
    "without dimensions": (X, torch.tensor(1.0)),
    "a list": (X, [HX, HX]),
    "a list of one": (X, [HX]),
    "a set": (X, {HX}),
    "by name": (X, {"h": HX, "c": HX}),
    "a number": (X, 2),
    "text": (X, "hc"),
    "Nones": (X, (None, None)),
    "pairs": (X, ((HX, HX), (HX, HX))),
    "unbatched, one": (X[0], (HX[0],)),
    "unbatched, three": (X[0], (HX[0], HX[0], HX[0])),
    "unbatched, three, the last None": (X[0], (HX[0], HX[0], None)),
    "unbatched, stacked": (X[0], HX),
    "unbatched, one stacked": (X[0], HX[:1]),
    "unbatched, a number": (X[0], 2),
}
# Every kind beside another, since the first fault that eager meets is the one to report.
KINDS_OF_TWO = {
    f"input {first}, hx {second}": (KINDS[first](X), KINDS[second](HX))
    for first in ("float64", "meta", "narrower", "longer", "list", "quantized")
    for second in ("float64", "meta", "narrower", "longer", "list", "quantized")
}
ALONE = {f"input {name} alone": (make(X),) for name, make in KINDS.items()}


class Spoilt(NamedTuple):
    """What is assigned to a cell before a good call."""

    name: str
    value: Any


def shown(spoilt):
    value = spoilt.value
    if not isinstance(value, torch.Tensor):
        return f"{spoilt.name} {value}"
    return f"{spoilt.name} {list(value.shape)} {value.dtype} {value.device}"


SPOILT = [
    Spoilt("weight_ih", torch.zeros(H, I + 1)),
    Spoilt("weight_ih", torch.zeros(H + 1, I)),
    Spoilt("weight_ih", torch.zeros(I)),
    Spoilt("weight_ih", torch.zeros(H, I, 1)),
    Spoilt("weight_ih", torch.tensor(1.0)),
    Spoilt("weight_ih", torch.zeros(H, I).double()),
    Spoilt("weight_ih", None),
    Spoilt("weight_hh", torch.zeros(H, H + 1)),
    Spoilt("weight_hh", torch.zeros(H + 1, H + 1)),
    Spoilt("weight_hh", torch.zeros(H)),
    Spoilt("weight_hh", torch.zeros(H, H).double()),
    Spoilt("weight_hh", None),
    Spoilt("bias_ih", torch.zeros(H + 1)),
    Spoilt("bias_ih", torch.zeros(H).double()),
    Spoilt("bias_ih", torch.zeros(H, device="meta")),
    Spoilt("bias_ih", None),
    Spoilt("bias_hh", torch.zeros(H + 1)),
    Spoilt("bias_hh", None),
    Spoilt("hidden_size", H + 1),
    Spoilt("hidden_size", -1),
    Spoilt("hidden_size", "5"),
    Spoilt("hidden_size", None),
    Spoilt("input_size", I + 1),
    Spoilt("input_size", None),
    Spoilt("bias", False),
    Spoilt("bias", "yes"),
    Spoilt("nonlinearity", "gelu"),
    Spoilt("nonlinearity", "TANH"),
    Spoilt("nonlinearity", None),
    Spoilt("nonlinearity", ["tanh"]),
    Spoilt("training", "yes"),
]


#: What is spoilt by the number of gates: w_ih and w_hh of other sizes, of one gate, of one too few.
SPOILT_GATES = [
    Spoilt("weight_ih", lambda gates: torch.zeros(gates * H, I + 1)),
    Spoilt("weight_ih", lambda gates: torch.zeros(gates * H + 1, I)),
    Spoilt("weight_ih", lambda gates: torch.zeros(gates * (H + 1), I)),
    Spoilt("weight_ih", lambda gates: torch.zeros((gates - 1) * H, I)),
    Spoilt("weight_ih", lambda gates: torch.zeros(gates * H, I).double()),
    Spoilt("weight_ih", lambda gates: None),
    Spoilt("weight_hh", lambda gates: torch.zeros(gates * H, H + 1)),
    Spoilt("weight_hh", lambda gates: torch.zeros((gates - 1) * H, H)),
    Spoilt("weight_hh", lambda gates: torch.zeros(gates * H, H).double()),
    Spoilt("weight_hh", lambda gates: None),
    Spoilt("bias_ih", lambda gates: torch.zeros(H)),
    Spoilt("bias_ih", lambda gates: torch.zeros(gates * H).double()),
    Spoilt("bias_ih", lambda gates: torch.zeros(gates * H, device="meta")),
    Spoilt("bias_hh", lambda gates: None),
    Spoilt("hidden_size", lambda gates: H + 1),
    Spoilt("hidden_size", lambda gates: "5"),
    Spoilt("input_size", lambda gates: None),
    Spoilt("bias", lambda gates: False),
    Spoilt("nonlinearity", lambda gates: "gelu"),
]
OTHERS = [nn.LSTMCell, nn.GRUCell]


def pair(kind=nn.RNNCell):
    torch.manual_seed(0)
    cell = kind(I, H)
    return cell, rnnjit.compile(cell, backend=usual(kind))


def good(kind, x=X, hx=HX):
    """The arguments of a good call."""
    return x, ((hx, hx) if kind is nn.LSTMCell else hx)


def expect_eagers_outcome(cell, fast, args):
    """The same values, or the same exception, with eager's sentence in the message."""
    try:
        want = cell(*args)
    except Exception:  # noqa: BLE001 - whatever it is, it is compared below
        theirs, ours = raised(cell, *args), raised(fast, *args)
        assert ours.type is theirs.type
        assert sentence(theirs) in str(ours.value)
    else:
        torch.testing.assert_close(fast(*args), want)


def expect_eagers_outcome_twice(kind, args):
    """Before and after a good call, which leaves a short way to be led astray."""
    cell, fast = pair(kind)
    for _ in range(2):
        expect_eagers_outcome(cell, fast, args)
        torch.testing.assert_close(fast(*good(kind)), cell(*good(kind)))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell])
@pytest.mark.parametrize("name", [*RANKS, *KINDS_OF_ONE, *KINDS_OF_TWO, *ALONE])
def test_arguments(kind, name):
    expect_eagers_outcome_twice(kind, {**RANKS, **KINDS_OF_ONE, **KINDS_OF_TWO, **ALONE}[name])


@pytest.mark.parametrize("name", [*PAIRS, *NO_PAIRS])
def test_arguments_of_two_states(name):
    expect_eagers_outcome_twice(nn.LSTMCell, {**PAIRS, **NO_PAIRS}[name])


def expect_eagers_outcome_of_a_spoilt_cell(kind, name, value, args):
    cell, fast = pair(kind)
    fast(*args)
    for module in (cell, fast):
        setattr(module, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)
    expect_eagers_outcome(cell, fast, args)


@pytest.mark.parametrize("args", [(X,), (X, HX), (X[0],)], ids=["zeros", "hx", "unbatched"])
@pytest.mark.parametrize("spoilt", SPOILT, ids=shown)
def test_attributes(spoilt, args):
    expect_eagers_outcome_of_a_spoilt_cell(nn.RNNCell, spoilt.name, spoilt.value, args)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("row", range(len(SPOILT_GATES)))
@pytest.mark.parametrize("kind", OTHERS)
def test_attributes_of_cells_with_gates(kind, row, given):
    name, make = SPOILT_GATES[row]
    value = make(kind(1, 1).weight_ih.shape[0])
    args = good(kind) if given else (X,)
    expect_eagers_outcome_of_a_spoilt_cell(kind, name, value, args)


@pytest.mark.parametrize(("name", "columns"), [("weight_ih", I), ("weight_hh", H)])
def test_weights_without_memory_are_refused_where_eager_returns_what_memory_held(name, columns):
    cell, fast = pair()
    for module in (cell, fast):
        setattr(module, name, nn.Parameter(torch.zeros(H, columns, device="meta")))
    cell(X, HX)
    with pytest.raises(RuntimeError, match="on meta"):
        fast(X, HX)


@pytest.mark.parametrize("kind", [nn.RNNCell, *OTHERS])
def test_a_state_of_one_dimension_that_is_as_long_as_the_batch(kind):
    _, fast = pair(kind)
    with pytest.raises(IndexError, match="Dimension out of range"):
        fast(*good(kind, hx=torch.zeros(B)))


@pytest.mark.parametrize(
    ("hx", "message"),
    [
        (HX, r"hx must be a tuple of 2 states \(h, c\), got Tensor"),
        ((HX,), "hx must be a tuple of 2 states, got 1"),
        ((HX, None), r"hx\[1\] must be a Tensor, got NoneType"),
        ((HX, HX[:1]), r"hx\[1\] must have shape \[2, 5\], got \[1, 5\]"),
        ((HX, HX[:, 1:]), r"hx\[1\] must have shape \[2, 5\], got \[2, 4\]"),
        ((HX, HX[None]), r"hx\[1\] must be 1-D or 2-D, got 3-D: \[1, 2, 5\]"),
        ((HX, HX.to("meta")), r"hx\[1\] is on meta but the weights are on cpu"),
        ((HX, sparse(HX)), r"hx\[1\] must be a dense tensor, got one of layout"),
        ((HX.double(), HX), r"hx\[0\] is torch.float64 but the weights are torch.float32"),
        (3, r"hx must be a tuple of 2 states \(h, c\), got int"),
    ],
)
def test_what_is_said_of_two_states(hx, message):
    _, fast = pair(nn.LSTMCell)
    assert raised(fast, X, hx).match(message)


@pytest.mark.parametrize("which", [("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh")])
@pytest.mark.parametrize("assign", [setattr, nn.Module.register_parameter])
@pytest.mark.parametrize("kind", [nn.RNNCell, *OTHERS])
def test_biases_that_come_and_go(kind, which, assign):
    cell, fast = pair(kind)
    both, args = (cell.bias_ih, cell.bias_hh), good(kind)
    for value in (None, nn.Parameter(torch.randn(both[0].shape)), None, *both):
        for name in which:
            for module in (cell, fast):
                assign(module, name, value)
        for _ in range(2):
            torch.testing.assert_close(fast(*args), cell(*args))


@pytest.mark.parametrize("kind", [nn.RNNCell, *OTHERS])
def test_sizes_are_those_of_the_weights(kind):
    cell, fast = pair(kind)
    rows = (H + 1) * (cell.weight_ih.shape[0] // H)
    torch.manual_seed(1)
    values = {
        "weight_ih": torch.randn(rows, I),
        "weight_hh": torch.randn(rows, H + 1),
        "bias_ih": torch.randn(rows),
        "bias_hh": torch.randn(rows),
    }
    for module in (cell, fast):
        for name, value in values.items():
            setattr(module, name, nn.Parameter(value))
    args = good(kind, hx=torch.randn(B, H + 1))
    torch.testing.assert_close(fast(*args), cell(*args))
