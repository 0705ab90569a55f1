"""Protects the table of register tiles: each rate stands by its tile and block of k."""

import json
import sys

import pytest
from rich.console import Console
from tiles import main, table

ONE = {
    "peak": 100.0,
    "tiles": {"6x4": 90.0, "6x4/128": 80.0, "2x8": 70.0},
    "sums": {"6x4": 60.0, "12x2": 50.0},
    "chosen": "6x4",
    "chosen for sums": "12x2",
}
REPORT = {"processor": "Some CPU", "llvm": "some", "isa": "avx512", "float32": ONE, "float64": ONE}


def test_rates_stand_by_their_tile():
    found = table(REPORT, "float32")
    cells = [[*column.cells] for column in found.columns]
    assert cells == [
        ["6x4", "2x8", "12x2"],
        ["90 (90%)", "70 (70%)", ""],
        ["80 (80%)", "", ""],
        ["", "", ""],
        ["60 (60%)", "", "50 (50%)"],
    ]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(found)
    assert "Some CPU (some), avx512, float32" in printed.get()
    assert "chosen: 6x4, for sums 12x2" in printed.get()


def test_reports_of_machines_are_printed_beside_each_other(tmp_path, monkeypatch, capsys):
    paths = []
    for name in ("one", "two"):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({**REPORT, "processor": name}))
    monkeypatch.setattr(sys, "argv", ["tiles.py", "--report", *map(str, paths)])
    main()
    printed = capsys.readouterr().out
    assert [printed.count(f"{name} (some)") for name in ("one", "two")] == [2, 2]


def test_an_unknown_option_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiles.py", "--none"])
    with pytest.raises(SystemExit):
        main()
