"""Protects the gate of int8: it passes what is quantized in any usual way, and no other mistake."""

import numpy as np
import pytest
from exact_rnn import exact
from msgspec import structs

from rnnjit.bench.arrays import FRAMES, draw
from rnnjit.bench.quantized_gate import QuantizedGate
from rnnjit.bench.records import Case

#: The shape of the least, where roundings do not average out, and one of 256 features, where the
#: error of rounding is small beside the sums.
CASES = [
    Case(T=6, B=3, I=4, H=5, dtype="int8"),
    Case(T=6, B=3, I=4, H=5, dtype="int8", cell="lstm", layers=2, bidirectional=True, packed=True),
    Case(T=6, B=3, I=4, H=5, dtype="int8", cell="gru", packed=True),
    Case(T=1, B=2, I=8, H=16, dtype="int8", cell="lstm", mode="streaming"),
    Case(T=3, B=2, I=256, H=256, dtype="int8", cell="gru"),
    Case(T=3, B=2, I=256, H=256, dtype="int8", cell="lstm"),
]


def rounded(values, bits):
    """To the nearest of `2 ** bits - 1` steps of the range, symmetric."""
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    return np.round(values / step) * step


def results_of(case, arrays):
    return {name: value.astype("float32") for name, value in exact(case, arrays).items()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.cell} {c.mode} {c.H}")
def test_what_is_rounded_is_right_and_wrong_layers_are_wrong(case):
    arrays = draw(case)
    gate = QuantizedGate(case, arrays)
    exactly = results_of(case, arrays)
    assert gate.judge(exactly).wrong == ""
    assert gate.judge(exactly).error < 1e-6

    matrices = {k: rounded(w, 8) if "weight" in k else w for k, w in arrays.weights.items()}
    hx = {"h0": rounded(arrays.h0, 7)}
    coarse = arrays._replace(x=rounded(arrays.x, 7), weights=matrices, **hx)
    found = gate.judge(results_of(case, coarse))
    assert found.wrong == ""
    assert 1e-4 < found.error < 0.1

    swapped = {name: np.roll(w, case.H, 0) for name, w in arrays.weights.items()}
    wrong = {
        "the gates in another order": arrays._replace(weights=swapped),
        "no initial state": arrays._replace(h0=np.zeros_like(arrays.h0)),
        "the steps one late": arrays._replace(x=np.roll(arrays.x, 1, 0)),
        "4 bits": arrays._replace(
            x=rounded(arrays.x, 4), weights={k: rounded(w, 4) for k, w in arrays.weights.items()}
        ),
    }
    if case.cell == "rnn":
        del wrong["the gates in another order"]
    for what, changed in wrong.items():
        assert "is off by" in gate.judge(results_of(case, changed)).wrong, what


def test_one_row_that_is_off_is_named():
    case = CASES[0]
    arrays = draw(case)
    gate, results = QuantizedGate(case, arrays), results_of(case, arrays)
    y = results["y"].copy()
    y[4, 2] += 0.1
    judged = gate.judge(results | {"y": y})
    assert "y is off by 0.1, the root mean square of row [4, 2]" in judged.wrong
    assert judged.error == pytest.approx(0.1, rel=1e-4)


def test_a_stream_that_forgets_its_state_is_wrong():
    case = CASES[3]
    arrays = draw(case)
    one = structs.replace(case, mode="forward")
    frames = [arrays._replace(x=x[None], grad_y=arrays.grad_y[:1]) for x in arrays.x]
    assert len(frames) == FRAMES
    y = np.concatenate([results_of(one, frame)["y"] for frame in frames])
    judged = QuantizedGate(case, arrays).judge(results_of(case, arrays) | {"y": y})
    assert "y is off by" in judged.wrong


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: np.where(y == y.max(), np.float32(np.nan), y), "y has values that are not"),
        (lambda y: y[:-1], "y is torch.float32 [5, 3, 5], expected float32 [6, 3, 5]"),
        (lambda y: y.astype(np.float64), "y is torch.float64 [6, 3, 5], expected float32"),
    ],
)
def test_what_is_of_another_form_is_wrong(change, says):
    case = CASES[0]
    arrays = draw(case)
    gate, results = QuantizedGate(case, arrays), results_of(case, arrays)
    assert says in gate.judge(results | {"y": change(results["y"])}).wrong
    del results["h_n"]
    assert gate.judge(results).wrong == "it gives no h_n"
