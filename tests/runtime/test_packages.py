"""Protects the check of installed releases: which are accepted, and the reason for others."""

import pytest
from packaging.specifiers import SpecifierSet

from rnnjit.runtime import packages
from rnnjit.runtime.packages import admits, lacking, needed
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
    reason = f"{package} 0.9.1 is installed, {releases} is needed: pip install 'rnnjit[tvm]'"
    assert reason in tvm.BACKEND.missing()


def test_another_numba_cuda_is_replaced_by_one_command(installed):
    installed("numba-cuda", "0.9.1")
    reason, *_ = availability.missing()
    said = f"numba-cuda 0.9.1 is installed, {availability.RELEASES} is needed"
    assert reason == f"{said}: pip install 'rnnjit[cuda]'"
