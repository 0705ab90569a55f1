"""Protects malformed calls of an nn.RNNCell: eager's exception and sentence, for a whole table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from bad_calls import B, H, I, raised, sentence
from odd_tensors import jagged, mkldnn, nested, quantised, sparse, sparse_rows
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
    "quantised": quantised,
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
# Every kind beside another, since the first fault that eager meets is the one to report.
KINDS_OF_TWO = {
    f"input {first}, hx {second}": (KINDS[first](X), KINDS[second](HX))
    for first in ("float64", "meta", "narrower", "longer", "list", "quantised")
    for second in ("float64", "meta", "narrower", "longer", "list", "quantised")
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


def pair(backend="auto"):
    torch.manual_seed(0)
    cell = nn.RNNCell(I, H)
    return cell, rnnjit.compile(cell, backend=backend)


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


@pytest.mark.parametrize("name", [*RANKS, *KINDS_OF_ONE, *KINDS_OF_TWO, *ALONE])
def test_arguments(name):
    args = {**RANKS, **KINDS_OF_ONE, **KINDS_OF_TWO, **ALONE}[name]
    cell, fast = pair()
    for _ in range(2):
        expect_eagers_outcome(cell, fast, args)
        torch.testing.assert_close(fast(X, HX), cell(X, HX))  # so that the second has a short way


@pytest.mark.parametrize("args", [(X,), (X, HX), (X[0],)], ids=["zeros", "hx", "unbatched"])
@pytest.mark.parametrize("spoilt", SPOILT, ids=shown)
def test_attributes(spoilt, args):
    cell, fast = pair()
    fast(*args)
    for module in (cell, fast):
        value = spoilt.value
        if isinstance(value, torch.Tensor):
            value = nn.Parameter(value)
        setattr(module, spoilt.name, value)
    expect_eagers_outcome(cell, fast, args)


@pytest.mark.parametrize(("name", "columns"), [("weight_ih", I), ("weight_hh", H)])
def test_weights_without_memory_are_refused_where_eager_returns_what_memory_held(name, columns):
    cell, fast = pair()
    for module in (cell, fast):
        setattr(module, name, nn.Parameter(torch.zeros(H, columns, device="meta")))
    cell(X, HX)
    with pytest.raises(RuntimeError, match="on meta"):
        fast(X, HX)


def test_a_state_of_one_dimension_that_is_as_long_as_the_batch():
    fast = rnnjit.compile(nn.RNNCell(4, 6))
    with pytest.raises(IndexError, match="Dimension out of range"):
        fast(torch.zeros(3, 4), torch.zeros(3))


@pytest.mark.parametrize("which", [("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh")])
@pytest.mark.parametrize("assign", [setattr, nn.Module.register_parameter])
def test_biases_that_come_and_go(which, assign):
    cell, fast = pair()
    both = cell.bias_ih, cell.bias_hh
    for value in (None, nn.Parameter(torch.randn(H)), None, *both):
        for name in which:
            for module in (cell, fast):
                assign(module, name, value)
        for _ in range(2):
            torch.testing.assert_close(fast(X, HX), cell(X, HX))


def test_sizes_are_those_of_the_weights():
    cell, fast = pair()
    for module in (cell, fast):
        for name, shape in (("weight_hh", (H + 1, H + 1)), ("weight_ih", (H + 1, I))):
            setattr(module, name, nn.Parameter(torch.ones(shape)))
        for name in ("bias_ih", "bias_hh"):
            setattr(module, name, nn.Parameter(torch.ones(H + 1)))
    hx = torch.randn(B, H + 1)
    torch.testing.assert_close(fast(X, hx), cell(X, hx))
