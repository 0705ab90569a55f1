"""Protects the backends' names, which agree everywhere, and cheap imports of the core."""

import re
import subprocess
import sys

import pytest
from folders import ROOT

if sys.version_info < (3, 11):
    pytest.skip("tomllib is new in Python 3.11", allow_module_level=True)
import tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STEMS = sorted(p.name for p in (ROOT / "backends").iterdir() if (p / "__init__.py").is_file())


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/"
    ).stdout


def test_backends_is_a_folder_and_not_a_package():
    assert STEMS
    assert not (ROOT / "backends" / "__init__.py").exists()
    assert all(stem.startswith("rnnjit_") for stem in STEMS)


def test_folders_wheel_packages_and_entry_points_are_the_same():
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(["rnnjit", *(f"backends/{stem}" for stem in STEMS)])
    points = dict(PYPROJECT["project"]["entry-points"]["rnnjit.backends"])
    assert points.pop("eager") == "rnnjit.reference:BACKEND"
    assert points == {stem.removeprefix("rnnjit_"): f"{stem}:BACKEND" for stem in STEMS}


def test_type_checker_and_linter_know_every_backend():
    assert sorted(PYPROJECT["tool"]["mypy"]["files"]) == sorted(
        ["rnnjit", *(f"backends/{stem}" for stem in STEMS)]
    )
    everywhere = PYPROJECT["tool"]["ruff"]
    core = tomllib.loads((ROOT / "rnnjit" / "ruff.toml").read_text())
    banned = [
        set(rules["lint"]["flake8-tidy-imports"]["banned-api"]) for rules in (everywhere, core)
    ]
    assert "backends" in banned[0]
    assert {"backends", "numba", "llvmlite", "tvm", *STEMS} <= banned[1]


def test_the_core_imports_no_compiler_and_no_display():
    heavy = ("numba", "llvmlite", "tvm", "rich", "matplotlib", "pytest", "scipy", *STEMS)
    code = f"import sys, rnnjit; print([m for m in {heavy!r} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_listing_the_backends_imports_no_compiler():
    heavy = ("numba", "llvmlite", "tvm")
    code = (
        "import sys, rnnjit; names = list(rnnjit.backends());"
        f"print(names, [m for m in {heavy!r} if m in sys.modules])"
    )
    assert python(code).strip().endswith("'eager'] []")


def test_nothing_imports_backends_as_a_package():
    for path in [*ROOT.glob("rnnjit/**/*.py"), *ROOT.glob("backends/**/*.py")]:
        assert not re.search(r"^\s*(import|from) backends\b", path.read_text(), re.MULTILINE), path


def test_the_version_is_one():
    from importlib.metadata import version

    import rnnjit

    assert version("rnnjit") == rnnjit.__version__


def test_the_package_is_typed():
    assert (ROOT / "rnnjit" / "py.typed").is_file()
