"""Protects the check of installed releases: which are accepted, and what advice others get."""

import re
import shlex
from importlib.metadata import requires

import pytest
from folders import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rnnjit.runtime import packages
from rnnjit.runtime.packages import admits, install, lacking, needed
from rnnjit_cuda import availability
from rnnjit_numba import BACKEND, private
from rnnjit_tvm import backend as tvm

RANGES = [">=0.62,<0.69", "<0.48,>=0.47.0dev0", ">=1.2.3", "<2"]
RELEASES = [
    *("0.9", "0.47.0", "0.47.5", "0.48", "0.61.2", "0.62", "0.62.0", "0.62.0.post1", "0.68.1"),
    *("0.68.10", "0.69.0", "0.69.0rc1", "0.100", "1", "1.2", "1.2.3", "1.2.3+cpu", "1.10", "2.0"),
]


@pytest.mark.parametrize("releases", RANGES)
def test_ranges_are_those_of_installers(releases):
    expected = {each for each in RELEASES if SpecifierSet(releases).contains(each)}
    assert {each for each in RELEASES if admits(releases, each)} == expected
    assert 0 < len(expected) < len(RELEASES)


def test_a_version_without_numbers_will_not_do():
    assert not admits(">=0.62,<0.69", "unknown")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a distribution that is nothing but its metadata, found before any other."""

    def forget():
        packages.needed.cache_clear()
        packages._installed.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, *requires):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {each}" for each in requires]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        (tmp_path / f"{name.replace('-', '_')}.py").touch()
        forget()

    yield install
    forget()


def test_what_is_installed_is_held_against_a_range(installed):
    command = "pip install 'some-thing>=1.5,<2'"
    checked = "some-thing", "some_thing", ">=1.5,<2", command
    assert lacking(*checked) == [f"some-thing is not installed: {command}"]
    installed("some-thing", "2.0.1")
    said = f"some-thing 2.0.1 is installed, >=1.5,<2 is needed: {command}"
    assert lacking(*checked) == [said]
    assert lacking(*checked[:2], ">=2,<3", command) == []


def test_what_one_distribution_asks_of_another(installed):
    installed(
        "asking",
        "1",
        "thing-core>=9",
        "thing<0.48,>=0.47.0dev0",
        "plain",
        "marked>=3; python_version > '3'",
    )
    assert needed("thing", of="asking") == ">=0.47.0,<0.48"
    assert needed("thing-core", of="asking") == ">=9"
    assert needed("marked", of="asking") == ">=3"
    assert needed("plain", of="asking") is None
    assert needed("other", of="asking") is None
    assert needed("thing", of="not-installed-at-all") is None


def test_a_release_of_numba_goes_with_one_of_llvmlite(installed):
    assert BACKEND.missing() == []
    installed("numba", "0.65.0", "llvmlite<0.48,>=0.47.0dev0")
    installed("llvmlite", "0.50.0")
    command = f"pip install 'numba{private.RELEASES['numba']}'"
    said = f"llvmlite 0.50.0 is installed, >=0.47.0,<0.48 is needed: {command}"
    assert BACKEND.missing() == [said]


@pytest.mark.parametrize("package", private.RELEASES)
def test_another_numba_or_llvmlite_is_replaced_by_one_command(package, installed):
    installed(package, "0.9.1")
    (reason,) = BACKEND.missing()
    assert reason.startswith(f"{package} 0.9.1 is installed, >=")
    assert reason.endswith(f": pip install 'numba{private.RELEASES['numba']}'")


@pytest.mark.parametrize("package", ["apache-tvm", "llvmlite"])
def test_another_tvm_or_loader_is_replaced_by_one_command(package, installed):
    releases = {"apache-tvm": tvm.RELEASES, "llvmlite": tvm.LOADERS}[package]
    installed(package, "0.9.1")
    reason = f"{package} 0.9.1 is installed, {releases} is needed: "
    (found,) = [each for each in tvm.BACKEND.missing() if each.startswith(reason)]
    assert f"'{package}{releases}'" in found


def test_another_numba_cuda_is_replaced_by_one_command(installed):
    installed("numba-cuda", "0.9.1")
    reason, *_ = availability.missing()
    said = f"numba-cuda 0.9.1 is installed, {availability.RELEASES} is needed"
    assert reason == f"{said}: {install('cuda')}"
    assert f"'numba-cuda{availability.RELEASES}'" in reason


# what advice says


def test_advice_names_what_can_be_installed_from_anywhere():
    """Rnnjit is in no package index, and its folder is not where people work."""
    found = install("bench")
    assert found.startswith("pip install '")
    names = {Requirement(each).name for each in shlex.split(found)[2:]}
    assert {"matplotlib", "jinja2", "jax"} <= names
    assert "rnnjit" not in names
    assert install("bench", "matplotlib") == "pip install 'matplotlib>=3.9'"
    assert install("bench", "a-peer") == "pip install a-peer"
    (toolkit, _) = shlex.split(install("cuda"))[2:]
    assert Requirement(toolkit).extras == {"nvrtc", "nvvm", "nvjitlink"}


def test_advice_asks_for_what_the_extra_asks_for():
    for extra in ("bench", "cuda", "tvm"):
        own = {
            (r.name, frozenset(r.extras), str(r.specifier))
            for r in map(Requirement, requires("rnnjit"))
            if r.marker is not None and r.marker.evaluate({"extra": extra})
        }
        advised = map(Requirement, shlex.split(install(extra))[2:])
        assert {(r.name, frozenset(r.extras), str(r.specifier)) for r in advised} == own


def test_without_metadata_advice_is_for_a_clone(monkeypatch):
    monkeypatch.setattr("rnnjit.runtime.packages._extra", lambda name: ())
    assert install("bench") == "pip install '.[bench]'"


def test_no_message_sends_people_to_an_index_for_rnnjit():
    for folder in ("rnnjit", "backends", "docs"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".md"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"pip install ['\"]?rnnjit\b", text), path
