"""Protects `make mutants`: each line that it breaks stands in its file, once."""

import sys

import pytest
from folders import ROOT

if sys.version_info < (3, 11):
    pytest.skip("tomllib is new in Python 3.11", allow_module_level=True)
import tomllib

MUTANTS = tomllib.loads((ROOT / "tests/mutants/mutants.toml").read_text())["mutant"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["new"].partition("\n")[0])
def test_a_broken_line_stands_once_in_its_file(mutant):
    assert (ROOT / mutant["file"]).read_text().count(mutant["old"]) == 1
    assert mutant["old"] != mutant["new"]
    for path in mutant["noticed_by"]:
        assert (ROOT / path).exists()
