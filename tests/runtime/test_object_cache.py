"""Protects the disk cache: what it keeps and trusts, and the command `rnnjit cache`."""

import ast
import errno
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from folders import ROOT

import rnnjit
import rnnjit_numba.library
import rnnjit_tvm.library
from rnnjit.cli import main
from rnnjit.codegen import kernel
from rnnjit.codegen.kernel import Kind
from rnnjit.dispatch import tuning_db
from rnnjit.ir import RNN_TANH
from rnnjit.runtime import object_cache
from rnnjit_cuda import compiler as cuda_compiler
from rnnjit_cuda.kernels import KernelKey

LIBRARIES = {"numba": rnnjit_numba.library, "tvm": rnnjit_tvm.library}
KEY, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


@pytest.fixture
def place(tmp_path, monkeypatch):
    found = tmp_path / "not yet" / "cache"
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, str(found))
    return found


def test_only_the_user_can_look_into_the_directory(place):
    object_cache.keep(KEY, b"code")
    assert object_cache.fetch(KEY) == b"code"
    assert place.stat().st_mode & 0o777 == 0o700
    (file,) = place.iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == (f"{KEY}.o", 0o600)


def test_damaged_files_are_not_believed(place):
    object_cache.keep(KEY, b"code")
    file = place / f"{KEY}.o"
    whole = file.read_bytes()
    damaged = (b"", whole[:-1], whole + b"!", b"\0" * 100, whole[:31] + b"?" + whole[32:])
    for content in damaged:
        file.write_bytes(content)
        assert object_cache.fetch(KEY) is None
    file.write_bytes(whole)
    assert object_cache.fetch(KEY) == b"code"


def test_a_file_under_another_name_is_not_believed(place):
    object_cache.keep(KEY, b"code")
    content = (place / f"{KEY}.o").read_bytes()
    for name in (f"{OTHER}.o", f"{KEY}.tuned"):
        (place / name).write_bytes(content)
    assert object_cache.fetch(OTHER) is None
    assert object_cache.fetch(KEY, "tuned") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "writable by others"])
def test_what_is_no_file_of_the_users_own_is_not_read(place, tmp_path, kind):
    object_cache.keep(KEY, b"code")
    file = place / f"{KEY}.o"
    if kind == "writable by others":
        file.chmod(0o666)
        with pytest.warns(UserWarning, match="others can write to it"):
            assert object_cache.fetch(KEY) is None
    else:
        real = file.rename(tmp_path / "real")
        make = {"link": lambda: file.symlink_to(real), "pipe": lambda: os.mkfifo(file)}
        make.get(kind, file.mkdir)()
        assert object_cache.fetch(KEY) is None


def test_readers_see_a_whole_file_or_none(place):
    contents = [bytes([number]) * 300_000 for number in range(2)]
    object_cache.keep(KEY, contents[0])
    done = threading.Event()

    def write(content):
        while not done.is_set():
            object_cache.keep(KEY, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    try:
        for _ in range(200):
            assert object_cache.fetch(KEY) in contents
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert [file.name for file in place.iterdir()] == [f"{KEY}.o"]


def test_a_key_covers_facts_and_sources(tmp_path):
    source = tmp_path / "kernels.py"
    source.write_text("a = 1\n")
    first = object_cache.name_of("avx2", 32, files=(str(source),))
    assert object_cache.name_of("avx2", 32, files=(str(source),)) == first
    assert object_cache.name_of("avx2", 64, files=(str(source),)) != first
    assert object_cache.name_of("avx512", 32, files=(str(source),)) != first
    source.write_text("a = 2\n")
    assert object_cache.name_of("avx2", 32, files=(str(source),)) != first


def test_a_key_covers_the_bytecode(tmp_path, monkeypatch):
    first = object_cache.name_of("avx2", files=())
    assert object_cache.name_of("avx2", files=()) == first
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-399")
    assert object_cache.name_of("avx2", files=()) != first


STEP = KernelKey("step", "forward", "float32", RNN_TANH)
COMPILERS = {
    "numba": ("llvmlite", "numba"),
    "tvm": ("apache-tvm",),
    "cuda": ("cuda-core", "llvmlite", "numba", "numba-cuda"),
}


@pytest.mark.parametrize(
    ("backend", "package"), [(name, each) for name, some in COMPILERS.items() for each in some]
)
def test_a_key_covers_the_compilers(backend, package, monkeypatch):
    def key(**versions):
        for module in (kernel, cuda_compiler):
            monkeypatch.setattr(module, "version", lambda name: versions.get(name, "1.0"))
        if backend == "cuda":
            return cuda_compiler.key_of(STEP, (8, 0))
        return LIBRARIES[backend].library._make(Kind(torch.float32, RNN_TANH))

    for library in LIBRARIES.values():
        monkeypatch.setattr(library, "cached", lambda key, load, compile_code: key)
    monkeypatch.setattr(cuda_compiler, "_toolkit", lambda: iter(()))
    first = key()
    assert key() == first
    assert key(**{package: "1.1"}) != first


def test_a_key_covers_the_libraries_of_the_cuda_toolkit(tmp_path, monkeypatch):
    pathfinder = pytest.importorskip("cuda.pathfinder")
    library = tmp_path / "libnvvm.so"
    library.write_bytes(b"one")
    place = type("Loaded", (), {"abs_path": str(library)})
    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", lambda name: place)
    monkeypatch.setattr(cuda_compiler, "version", lambda name: "1.0")
    first = cuda_compiler.key_of(STEP, (8, 0))
    assert cuda_compiler.key_of(STEP, (8, 0)) == first
    library.write_bytes(b"another")
    assert cuda_compiler.key_of(STEP, (8, 0)) != first


@pytest.mark.parametrize("change", ["Python", "numba-cuda"])
def test_a_measurement_holds_for_the_versions_that_it_was_made_with(change, place, monkeypatch):
    spec = rnnjit.RNNSpec(2, 3)
    here, there = (
        rnnjit.Problem(torch.float32, device, 1, 1, 1, False, False) for device in ("cpu", "cuda")
    )
    for problem in (here, there):
        tuning_db.keep(spec, problem, {"eager": 1.0})
    if change == "Python":
        monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-399")
    else:
        monkeypatch.setattr(tuning_db, "version_of", lambda name: "0.1")
    found = [bool(tuning_db.fetch(spec, problem)) for problem in (here, there)]
    assert found == [change != "Python", False]


def test_cache_command_lists_and_clears_what_is_ours(place, tmp_path, capsys):
    assert main(["cache"]) == 0
    assert main(["cache", "--clear"]) == 0
    assert not place.exists()
    object_cache.keep(KEY, b"c" * 968)
    object_cache.keep(OTHER, b"c" * 968)
    object_cache.keep(KEY, b"{}", "tuned")
    others = {place / "notes.o", place / f"{KEY}.o.txt", place / f"{'g' * 32}.o"}
    for file in others:
        file.write_text("not ours")
    (place / f"{KEY}.o.0123.tmp").write_bytes(b"half")
    target = tmp_path / "precious"
    target.write_text("precious")
    link = place / f"{'a' * 32}.o"
    link.symlink_to(target)
    inner = place / f"{'b' * 32}.o"
    inner.mkdir()
    capsys.readouterr()

    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert str(place) in shown
    for line in (
        r"compiled kernels.*2 +│ +2\.0 kB",
        r"rnnjit\.tune.*1 +│ +34 bytes",
        r"killed processes.*1 +│ +4 bytes",
        r"all +│ +4 +│ +2\.0 kB",
    ):
        assert re.search(line, shown), shown
    assert main(["cache", "--clear"]) == 0
    assert re.search(r"all +│ +4 ", capsys.readouterr().out)
    assert set(place.iterdir()) == others | {link, inner}
    assert target.read_text() == "precious"
    assert object_cache.fetch(KEY) is None


def test_cache_command_says_why_it_cannot(place, capsys):
    object_cache.keep(KEY, b"code")
    place.chmod(0o777)
    for arguments in (["cache"], ["cache", "--clear"]):
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        said = f"rnnjit cache: {place}: others can write to it: run chmod 700 on it\n"
        assert printed.err == said
    assert (place / f"{KEY}.o").exists()


def test_nothing_of_ours_is_a_pickle():
    used = set()
    for path in [*ROOT.glob("rnnjit/**/*.py"), *ROOT.glob("backends/**/*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute):
                names = {ast.unparse(node)}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}[
                    "weights_only"
                ] == "True"
                continue
            else:
                continue
            used |= {(name, path.name) for name in names}
    formats = ("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
    found = {use for use in used if use[0].split(".")[0] in formats or use[0] == "torch.save"}
    # The exception by which torch.load says that a file names what it may not build.
    assert found == {("pickle", "models.py"), ("pickle.UnpicklingError", "models.py")}


def keep_all(*names, size=400_000):
    """Keep a file under each name, each written a second after the one before."""
    for age, name in enumerate(names):
        object_cache.keep(name, bytes(size))
        used = 1_000_000_000 + age
        os.utime(object_cache.directory() / f"{name}.o", (used, used))


def kept_keys():
    return {entry.name.partition(".")[0] for entry in object_cache.kept()}


NAMES = [f"{number:032x}" for number in range(6)]


def test_what_was_used_least_recently_is_removed(place, monkeypatch):
    monkeypatch.setenv(object_cache.BOUND_VARIABLE, "2")
    keep_all(*NAMES[:4])
    (place / "notes.txt").write_bytes(bytes(5_000_000))
    assert object_cache.fetch(NAMES[0]) == bytes(400_000)
    for name in NAMES[4:]:
        object_cache.keep(name, bytes(400_000))
    assert kept_keys() == {NAMES[0], *NAMES[3:]}
    assert (place / "notes.txt").stat().st_size == 5_000_000
    object_cache.keep(NAMES[1], bytes(1_900_000))
    assert kept_keys() == {NAMES[1]}
    assert object_cache.fetch(NAMES[0]) is None


def test_the_bound_is_500_mb_if_nothing_is_said(place, monkeypatch):
    assert object_cache.bound() == 500_000_000
    for said, most in (("", 500), (" 20 ", 20), ("0", 0)):
        monkeypatch.setenv(object_cache.BOUND_VARIABLE, said)
        assert object_cache.bound() == most * 10**6
    object_cache.keep(KEY, b"code")
    assert kept_keys() == set()


@pytest.mark.parametrize("said", ["-1", "many", "1.5", "1e3", "٣"])
def test_a_bound_that_is_no_number_is_a_warning(place, monkeypatch, said, capsys):
    monkeypatch.setenv(object_cache.BOUND_VARIABLE, said)
    monkeypatch.setattr(object_cache, "_COMPLAINED", {})
    with pytest.warns(UserWarning, match="RNNJIT_CACHE_MB must be a whole number") as caught:
        keep_all(KEY, OTHER)
    assert len(caught) == 1
    assert kept_keys() == {KEY, OTHER}
    assert main(["cache"]) == 1
    assert "RNNJIT_CACHE_MB must be a whole number of megabytes" in capsys.readouterr().err


def test_drafts_of_others_are_left_until_they_are_old(place, monkeypatch):
    monkeypatch.setenv(object_cache.BOUND_VARIABLE, "1")
    object_cache.keep(KEY, b"code")
    young, old = (place / f"{OTHER}.o.{name}.tmp" for name in ("01", "02"))
    for draft in (young, old):
        draft.write_bytes(bytes(2_000_000))
    os.utime(old, (1_000_000_000, 1_000_000_000))
    object_cache.keep(OTHER, b"more code")
    assert young.exists()
    assert not old.exists()


def test_a_read_only_file_system_is_read_without_a_mark(place, monkeypatch):
    object_cache.keep(KEY, b"code")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert object_cache.fetch(KEY) == b"code"


PRUNING = """
import os, sys, warnings
from rnnjit.runtime import object_cache

warnings.simplefilter("error")
seed = int(sys.argv[1])
for number in range(seed, seed + 150):
    key = f"{number % 40:032x}"
    found = object_cache.fetch(key)
    assert found in (None, key.encode() * 3000)
    object_cache.keep(key, key.encode() * 3000)
"""


def test_processes_that_read_write_and_prune_at_once(place):
    environment = {**os.environ, object_cache.BOUND_VARIABLE: "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PRUNING, str(seed)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 13, 26)
    ]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert errors == [""] * 3
    assert [process.returncode for process in running] == [0] * 3
    # 96,032 bytes each: at the end one that pruned last has left what fits, or less.
    assert 1 <= len(object_cache.kept()) <= 10


def test_cache_command_says_the_bound(place, capsys, monkeypatch):
    monkeypatch.setenv(object_cache.BOUND_VARIABLE, "20")
    object_cache.keep(KEY, b"code")
    assert main(["cache"]) == 0
    assert re.search(r"at most \(RNNJIT_CACHE_MB\) +│ +│ 20\.0 MB", capsys.readouterr().out)


def test_a_tilde_in_the_variable_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, "~/kernels")
    monkeypatch.chdir(tmp_path)
    object_cache.keep(KEY, b"code")
    assert (tmp_path / "home" / "kernels" / f"{KEY}.o").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["home"]
    assert object_cache.fetch(KEY) == b"code"


def test_a_tilde_of_nobody_costs_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, "~nobody-of-this-name/kernels")
    monkeypatch.setattr(object_cache, "_COMPLAINED", {})
    monkeypatch.chdir(tmp_path)
    with pytest.warns(rnnjit.RNNJitWarning, match=object_cache.DIRECTORY_VARIABLE):
        object_cache.keep(KEY, b"code")
    assert object_cache.fetch(KEY) is None
    assert not list(tmp_path.iterdir())
