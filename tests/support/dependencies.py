"""What rnnjit's requirements come to among the distributions that are installed here."""

import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from folders import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info < (3, 11):
    pytest.skip("tomllib is new in Python 3.11", allow_module_level=True)
import tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(*extras):
    """All distributions that a plain install takes, or one with extras, and its dependencies'.

    Returns:
        By name; None for one that is not installed.
    """
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    waiting = [Requirement(line) for lines in lists for line in lines]
    found, seen = {}, {PROJECT["name"]}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = ["", *requirement.extras]
        for extra in wanted:
            if f"{name}[{extra}]" in seen or name == PROJECT["name"]:
                continue
            seen.add(f"{name}[{extra}]")
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                found[name] = None
                continue
            needs = map(Requirement, found[name].requires or ())
            waiting += [r for r in needs if not r.marker or r.marker.evaluate({"extra": extra})]
    return found


def link(found, folder):
    """Put what an installed distribution holds into a folder that may stand on the import path."""
    tops = {file.parts[0] for file in found.files if file.parts[0] != ".."}
    for name in tops - {"__pycache__"}:
        place = folder / name
        if not place.exists():
            place.symlink_to(found.locate_file(name))
