"""Protects the correctness gate: it passes results as accurate as eager's, and no others."""

import numpy as np
import pytest
import torch
from exact_rnn import exact
from torch import nn

from rnnjit.bench.arrays import FRAMES, draw
from rnnjit.bench.correctness_gate import CorrectnessGate
from rnnjit.bench.records import Case

CASES = [
    Case(T=6, B=3, I=4, H=5),
    Case(T=6, B=3, I=4, H=5, mode="training", nonlinearity="relu"),
    Case(T=6, B=3, I=4, H=5, mode="training", layers=2, bidirectional=True, packed=True),
    Case(T=6, B=3, I=4, H=5, mode="training", dtype="float64"),
    Case(T=1, B=3, I=4, H=5, mode="streaming", layers=2),
    Case(T=6, B=3, I=4, H=5, mode="cold start"),
    Case(T=6, B=3, I=4, H=5, cell="lstm", mode="training", proj_size=2),
    Case(T=6, B=3, I=4, H=5, cell="gru", mode="training", packed=True, bidirectional=True),
    Case(T=1, B=3, I=4, H=5, cell="lstm", mode="training", as_cell=True),
    Case(T=6, B=3, I=4, H=5, cell="gru", dtype="float16"),
]


def results_of(case):
    """What is exact, rounded to the dtype of the case."""
    arrays = draw(case)
    exactly = exact(case, arrays)
    return CorrectnessGate(case, arrays), {k: v.astype(case.dtype) for k, v in exactly.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cell} {case.mode} {case.dtype}")
def test_what_is_exact_is_right_and_any_tensor_that_is_off_is_wrong(case):
    gate, results = results_of(case)
    found = gate.judge(results)
    assert found.wrong == ""
    unit = np.finfo(case.dtype).eps
    assert found.error <= 64 * unit
    assert 0 < gate.eager_error <= 64 * unit
    for name, value in results.items():
        off = value.copy()
        off.flat[-1] += 1000 * unit * np.abs(value).max()
        judged = gate.judge(results | {name: off})
        assert f"{name.replace('grad', 'the gradient of')} is off by" in judged.wrong
        assert judged.error >= 500 * unit * np.abs(value).max()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: np.where(y == y.max(), np.nan, y), "y has 1 NaN, eager has 0"),
        (lambda y: np.where(y == y.max(), np.inf, y), "y has 1 +Inf, eager has 0"),
        (lambda y: y[:-1], "y is torch.float32 [5, 3, 5], eager's is torch.float32 [6, 3, 5]"),
        (lambda y: y.astype(np.float64), "y is torch.float64"),
        (lambda y: y.astype(np.int32), "y is torch.int32"),
        (np.zeros_like, "y is off by"),
    ],
)
def test_what_is_of_another_form_is_wrong(change, says):
    gate, results = results_of(CASES[0])
    changed = change(results["y"])
    assert says in gate.judge(results | {"y": changed.astype(changed.dtype)}).wrong


def test_what_is_not_given_is_wrong():
    gate, results = results_of(CASES[1])
    del results["grad h0"]
    assert gate.judge(results).wrong == "it gives no grad h0"


def test_the_gate_records_gradients_whatever_its_surroundings():
    with torch.no_grad():
        gate, results = results_of_training()
        assert gate.judge(results).wrong == ""


def results_of_training():
    with torch.enable_grad():
        arrays = draw(CASES[1])
        exactly = {k: v.astype(np.float32) for k, v in exact(CASES[1], arrays).items()}
    return CorrectnessGate(CASES[1], arrays), exactly


def test_eagers_error_is_that_of_eager():
    case = CASES[0]
    arrays = draw(case)
    module = nn.RNN(4, 5)
    module.load_state_dict({k: torch.tensor(v) for k, v in arrays.weights.items()})
    with torch.no_grad():
        y, _ = module(torch.tensor(arrays.x), torch.tensor(arrays.h0))
    own = np.abs(y.numpy() - exact(case, arrays)["y"]).max()
    # The gate also looks at calls nearby, of which one may be less exact.
    assert own / 4 <= CorrectnessGate(case, arrays).eager_error <= own * 4


def test_a_stream_is_judged_over_several_steps():
    gate, results = results_of(CASES[4])
    assert results["y"].shape == (FRAMES, 3, 5)
    results["y"][1:] = results["y"][:1]
    assert "y is off by" in gate.judge(results).wrong


def test_the_gradient_of_the_second_state_is_judged_too():
    gate, results = results_of(CASES[6])
    results["grad c0"] = results["grad c0"] * np.float32(1.001)
    assert "the gradient of c0 is off by" in gate.judge(results).wrong
    del results["c_n"]
    assert gate.judge(results).wrong == "it gives no c_n"
