"""What is built and what is installed: the same bytes each time, and nothing but what is meant."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from dependencies import PROJECT, ROOT, link, required
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import rnnjit
from rnnjit_cuda import availability
from rnnjit_numba import private
from rnnjit_tvm import backend as tvm

BACKENDS = Path("backends")
WHEEL = f"rnnjit-{rnnjit.__version__}-py3-none-any.whl"
SDIST = f"rnnjit-{rnnjit.__version__}.tar.gz"


@pytest.fixture(scope="module")
def tracked():
    """The files of the project, without what lies beside them."""
    command = ["git", "ls-files", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only a checkout tells its own files from others")
    return sorted(Path(name) for name in done.stdout.split("\0") if (ROOT / name).is_file())


def build(folder, **environment):
    """The distributions of a source tree, as files."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder / "dist"],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return {path.name: path for path in (folder / "dist").iterdir()}


def copy(tracked, folder, mode, time):
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
        (folder / name).chmod(mode)
        os.utime(folder / name, (time, time))


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    copy(tracked, folder, 0o644, 1.7e9)
    return build(folder, TZ="UTC", PYTHONHASHSEED="1")


def digests(files):
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_another_build_elsewhere_has_the_same_bytes(built, tracked, tmp_path):
    folder = tmp_path / "some" / "where"
    copy(tracked, folder, 0o600, 1.6e9)
    for left in ("rnnjit/__pycache__/spec.cpython-311.pyc", ".venv/x.py", "dist/rnnjit-0.0.0.whl"):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_text("left over")
    again = build(folder, TZ="Asia/Tokyo", PYTHONHASHSEED="2", LC_ALL="C")
    del again["rnnjit-0.0.0.whl"]
    assert set(built) == {WHEEL, SDIST}
    assert digests(again) == digests(built)


def test_the_wheel_holds_the_packages_and_nothing_else(built, tracked):
    info = f"rnnjit-{rnnjit.__version__}.dist-info"
    expected = {
        f"{info}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    for path in tracked:
        if path.parts[0] == "rnnjit" and path.name != "ruff.toml":
            expected.add(str(path))
        elif path.parts[0] == "backends":
            expected.add(str(path.relative_to(BACKENDS)))
    with zipfile.ZipFile(built[WHEEL]) as wheel:
        assert set(wheel.namelist()) == expected


def test_the_source_distribution_tests_and_builds_as_the_checkout_does(built, tracked, tmp_path):
    of_the_checkout_alone = {".ci/run", ".pre-commit-config.yaml"}
    with tarfile.open(built[SDIST]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        # Nothing in it is a link, or lies outside.
        archive.extractall(tmp_path, filter="data")
    assert names == {str(path) for path in tracked} - of_the_checkout_alone | {"PKG-INFO"}
    again = build(tmp_path / f"rnnjit-{rnnjit.__version__}")
    assert digests(again)[WHEEL] == digests(built)[WHEEL]


def test_constraints_are_exact_and_are_what_is_installed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert lines == sorted(lines, key=str.lower)
    pins = {canonicalize_name(name): pin for name, _, pin in (s.partition("==") for s in lines)}
    assert len(pins) == len(lines)
    installed = required(*PROJECT["optional-dependencies"])
    assert set(installed) == set(pins)
    for name, found in installed.items():
        assert found is not None, f"{name} is not installed: make install"
        assert found.version in SpecifierSet(f"=={pins[name]}"), name


RANGES = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}


@pytest.fixture(scope="module")
def environments():
    """Exact versions that `make versions` tests, by environment and package; Python's too."""
    found = {}
    for path in (ROOT / "versions").glob("*.txt"):
        first, *pins = path.read_text().splitlines()
        assert pins == sorted(pins), path.name
        matches = [re.fullmatch(r"([\w-]+)==([\d.]+(?:\.post\d+)?)", line) for line in pins]
        found[path.stem] = {
            "Python": re.fullmatch(r"# Python (\d\.\d+)", first)[1],
            **{match[1]: match[2] for match in matches},
        }
    return found


def test_each_environment_lies_in_the_ranges(environments):
    for name, pins in environments.items():
        assert pins.keys() >= RANGES.keys(), name
        for package, needed in RANGES.items():
            assert needed.specifier.contains(pins[package]), (name, package)


def test_the_oldest_environment_has_what_the_ranges_begin_with(environments):
    for package, needed in RANGES.items():
        (least,) = (each.version for each in needed.specifier if each.operator == ">=")
        assert Version(environments["oldest"][package]) == Version(least), package
    assert PROJECT["requires-python"] == f">={environments['oldest']['Python']}"


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_every_release_of_the_compilers_has_an_environment(package, environments):
    tested = {Version(pins[package]).release[:2] for pins in environments.values()}
    bounds = {each.operator: Version(each.version).release for each in RANGES[package].specifier}
    assert tested == {(0, minor) for minor in range(bounds[">="][1], bounds["<"][1])}


def test_every_python_that_is_stated_has_an_environment(environments):
    stated = (each.rpartition(" :: ")[2] for each in PROJECT["classifiers"])
    tested = {pins["Python"] for pins in environments.values()}
    assert {each for each in stated if re.fullmatch(r"3\.\d+", each)} == tested


def test_backends_take_the_releases_that_are_stated():
    extras = PROJECT["optional-dependencies"]
    stated = {
        each.name: each for extra in ("tvm", "cuda") for each in map(Requirement, extras[extra])
    }
    for package, releases in (
        *private.RELEASES.items(),
        ("llvmlite", tvm.LOADERS),
        ("apache-tvm", tvm.RELEASES),
        ("numba-cuda", availability.RELEASES),
    ):
        assert (RANGES | stated)[package].specifier == SpecifierSet(releases), package


def test_the_readme_has_the_environments(environments):
    text = (ROOT / "README.md").read_text()
    oldest = environments["oldest"]
    least = re.search(r"Python (\d\.\d+)\+, torch (\d\.\d+)\+", text)
    assert least.groups() == (oldest["Python"], oldest["torch"].removesuffix(".0"))
    _, _, section = text.partition("\n## Versions\n")
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.partition("\n## ")[0].splitlines()
        if line.startswith("|")
    )
    assert head == ["environment", "Python", "torch", "numba", "llvmlite", "tests"]
    assert {row[0]: row[1:5] for row in rows} == {
        name: [pins[each] for each in head[1:5]] for name, pins in environments.items()
    }
    assert all(re.fullmatch(r"[\d,]+ passed.*", row[5]) for row in rows)


CALL = """
import torch, rnnjit, rnnjit.cli
rnn = torch.nn.RNN(5, 9)
fast = rnnjit.compile(rnn)
x = torch.randn(4, 3, 5)
torch.testing.assert_close(fast(x), rnn(x))
print(rnnjit.__file__)
print(rnnjit.explain(fast, x))
rnnjit.cli.main(["info"])
"""


@pytest.fixture
def plain(built, tmp_path):
    """The wheel and what it requires without any extra, installed; and a call there."""
    site = tmp_path / "site"
    site.mkdir()
    with zipfile.ZipFile(built[WHEEL]) as wheel:
        wheel.extractall(site)
    for found in required().values():
        link(found, site)

    def call():
        done = subprocess.run(
            [sys.executable, "-S", "-W", "error", "-c", CALL],
            cwd=site,
            # Nor is there a C++ compiler.
            env={**os.environ, "PYTHONPATH": str(site), "PATH": "", "CXX": ""},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(str(site))
        return done.stdout

    call.site = site
    return call


def test_a_plain_install_runs_compiled_kernels(plain):
    printed = plain()
    assert "-> numba" in printed
    assert printed.count("apache-tvm is not installed: pip install 'apache-tvm-ffi>=") == 2


def test_without_a_compiler_eager_answers_and_says_why(plain):
    packages = ("numba", "llvmlite")
    for package in packages:
        for path in plain.site.glob(f"{package}*"):
            path.unlink()
    printed = plain()
    assert "-> eager" in printed
    for package in packages:
        assert printed.count(f"{package} is not installed: {private.INSTALL}") >= 2


def test_another_release_of_the_compiler_is_not_used(plain):
    (info,) = plain.site.glob("numba-*.dist-info")
    own = plain.site / "numba-0.61.2.dist-info"
    shutil.copytree(info, own)
    info.unlink()
    text = (own / "METADATA").read_text()
    (own / "METADATA").write_text(re.sub(r"(?m)^Version: .*", "Version: 0.61.2", text))
    printed = plain()
    assert "-> eager" in printed
    needed = private.RELEASES["numba"]
    reason = f"numba 0.61.2 is installed, {needed} is needed: pip install 'numba{needed}'"
    assert printed.count(reason) == 2
