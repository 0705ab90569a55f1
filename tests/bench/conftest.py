"""What tests of the benchmark share: notes of contestants, tiny cases, reports made up."""

import json

import pytest
from bench_contestants import NOTES


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """What contestants of `bench_contestants` noted, so far."""
    path = tmp_path / "notes"
    path.touch()
    monkeypatch.setenv(NOTES, str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]
