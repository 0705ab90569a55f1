"""Protects the benchmark of users' cells: what is compared, what is counted, what is printed."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import pytest
from cells import OURS, calls_of, main, references, shortened, verdicts, wrong
from covered import in_turn
from measures.cell_contestants import COMPILED, CONTESTANTS, JAX, LOOP, Call

CALL = Call("MGU", 6, 2, 3, 5, trains=True)
#: A row with the seconds of each, and one in which a contestant failed.
ROWS = [
    {
        **dict(zip("TBIH", (100, 2, 3, 5), strict=True)),
        "cell": "MGU",
        "trains": True,
        "contestants": {
            LOOP: {"first": 1.0, "steps": 100, "seconds": 0.008},
            OURS: {"first": 1.0, "steps": 100, "seconds": 0.001},
            COMPILED: {"first": 1.0, "steps": 50, "seconds": 0.004},
            JAX: {"failed": "ImportError: no jax"},
        },
    },
]
ROWS.append({**ROWS[0], "contestants": {**ROWS[0]["contestants"], LOOP: {"seconds": 0.002}}})
REPORT = {
    "cpu": "Some CPU",
    "threads": 2,
    "rows": ROWS[:1],
    "compile": {"MGU": {"cold": 2.0, "warm": 0.05}},
}


def by_jax(call: Call) -> dict[str, np.ndarray]:
    """The results of JAX, in a process that it may start threads in."""
    return CONTESTANTS[JAX](call).results()


@pytest.fixture(scope="module")
def elsewhere():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(("cell", "trains"), in_turn(["LeakyRNN", "PeepholeLSTM", "MGU"], [0, 1]))
def test_jax_computes_the_same_cell(cell, trains, elsewhere):
    if find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    call = replace(CALL, cell=cell, trains=bool(trains))
    eager, exact = references(call)
    assert exact.keys() == ({"y", "x"} | exact.keys() if trains else {"y"})
    assert wrong(elsewhere.submit(by_jax, call).result(), eager, exact) == []


def test_a_wrong_result_is_not_timed():
    eager, exact = references(CALL)
    assert wrong(eager, eager, exact) == []
    for name in ("y", "x", "weight_hh"):
        off = {**eager, name: eager[name] + 1e-3 * np.abs(eager[name]).max()}
        (message,) = wrong(off, eager, exact)
        assert message.startswith(f"{name}: error 1.")
        assert wrong({**eager, name: eager[name] * np.nan}, eager, exact)
    assert wrong({"y": eager["y"]}, eager, exact)


def test_torch_compile_alone_is_timed_on_fewer_steps():
    assert {name: shortened(CALL, name, 4).T for name in CONTESTANTS} == {
        name: 4 if name == COMPILED else 6 for name in CONTESTANTS
    }


def test_ratios_are_those_to_ours():
    assert list(verdicts({**REPORT, "rows": ROWS})) == [
        f"{OURS} against {LOOP}: 4.00x, at least 2.00x (bar 4x, never slower): met",
        f"{OURS} against {COMPILED}: 4.00x, at least 4.00x (bar 2x, never slower): met",
        "MGU: first call 2.00 s cold, 0.05 s warm",
    ]


def test_a_report_is_printed_with_its_failures(tmp_path, capsys):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(REPORT))
    assert main(["--report", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Some CPU, 2 threads" in printed
    assert "(100, 2, 3, 5)" in printed
    assert "8.00, 8.0x" in printed
    assert "no jax" in printed
    assert "(of 50 steps)" in " ".join(printed.replace("│", " ").split())


def test_unknown_cells_are_refused():
    assert {call.cell for call in calls_of([("MGU", (1, 1, 1, 1))], "")} == {"MGU"}
    with pytest.raises(ValueError, match="expected some of MGU, got GRU"):
        calls_of([("MGU", (1, 1, 1, 1))], "GRU")
