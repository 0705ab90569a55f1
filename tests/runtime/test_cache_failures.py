"""Protects against failures of the cache: calls work, warn once at most, run no foreign code."""

import gc
import itertools
import os
import resource
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
import torch
from folders import ROOT
from fresh_calls import DTYPES, Calls, CompilingError, Engine
from torch import nn

import rnnjit
from rnnjit.codegen import ISA_VARIABLE
from rnnjit.dispatch import tuning_db
from rnnjit.runtime import object_cache

ALL = list(DTYPES)
STEPS = itertools.count(2)
NOBODY = 65534
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away"
)


@pytest.fixture(scope="module", params=["numba", "tvm"])
def engine(request):
    reasons = rnnjit.backends()[request.param].missing()
    if reasons:
        pytest.skip("; ".join(reasons))
    return Engine(request.param)


@pytest.fixture(scope="module")
def kernels(engine):
    """The parts of both libraries, compiled by what the session's cache does not hold."""
    for dtype in ALL:
        engine.load(dtype)
    return {dtype: engine.split(object_cache.fetch(engine.keys[dtype])) for dtype in ALL}


@pytest.fixture
def call(engine, kernels, monkeypatch):
    yield Calls(engine, kernels, monkeypatch)
    engine.library.library.made.clear()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the cache is to be; there is nothing yet."""
    found = tmp_path / "above" / "cache"
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, str(found))
    return found


@pytest.fixture
def mounted(place):
    """Mounts a file system in memory there; called again, with other options."""
    done = False

    def mount(options):
        nonlocal done
        place.mkdir(parents=True, exist_ok=True)
        options = f"remount,{options}" if done else options
        command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted: {getattr(error, 'stderr', error)}")
        done = True

    yield mount
    if done:
        subprocess.run(["umount", place], check=True)


def files(place):
    return sorted(file.name for file in place.iterdir())


def kept_names(engine):
    return sorted(f"{key}.o" for key in engine.keys.values())


def test_a_missing_directory_is_made_and_then_nothing_is_compiled(call, place):
    assert call() == (ALL, [])
    assert files(place) == kept_names(call.engine)
    assert call() == ([], [])


def test_kernels_outlive_their_library(call, place):
    module = rnnjit.compile(nn.RNN(3, 11), backend=call.engine.name)
    x = torch.randn(2, 5, 3)
    y, _ = module(x)
    call.engine.library.library.made.clear()
    gc.collect()
    assert torch.equal(module(x)[0], y)


def a_file(place):
    place.write_text("")


def under_a_file(place):
    place.parent.rmdir()
    place.parent.write_text("")


def a_link_to_nothing(place):
    place.symlink_to("nothing")


def a_link_to_itself(place):
    place.symlink_to(place.name)


def writable_by_the_group(place):
    place.chmod(0o770)


def writable_by_everybody(place):
    place.chmod(0o777)


def shared_like_tmp(place):
    place.chmod(0o1777)


def anothers(place):
    os.chown(place, NOBODY, NOBODY)


def a_link_to_anothers(place):
    elsewhere = place.rename(place.with_name("elsewhere"))
    anothers(elsewhere)
    place.symlink_to(elsewhere)


@pytest.mark.parametrize("spoil", [a_file, under_a_file, a_link_to_nothing, a_link_to_itself])
def test_without_a_directory_every_process_compiles_and_warns_once(call, place, spoil):
    place.parent.mkdir()
    spoil(place)
    compiled, warned = call()
    assert compiled == ALL
    (warning,) = warned
    assert str(place) in warning
    assert object_cache.DIRECTORY_VARIABLE in warning
    tuning_db.keep(rnnjit.RNNSpec(2, 3), problem(), {"eager": 1.0})  # which would warn, too


@pytest.mark.parametrize("spoil", [a_file, a_link_to_nothing])
def test_a_warning_that_is_an_error_loses_no_kernel(call, place, spoil, monkeypatch):
    place.parent.mkdir()
    spoil(place)
    monkeypatch.setattr(object_cache, "_COMPLAINED", {})
    library = call.engine.library.library
    library.made.clear()
    module = rnnjit.compile(nn.RNN(3, 13), backend=call.engine.name)
    x = torch.randn(next(STEPS), 5, 3)  # no call before was like it: those hold their kernels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(rnnjit.RNNJitWarning, match=object_cache.DIRECTORY_VARIABLE):
            module(x)
        kept = dict(library.made)
        module(x)
    assert kept
    assert all(library.made[key] is each for key, each in kept.items())


def test_a_warning_that_is_an_error_does_not_end_auto(place):
    place.parent.mkdir()
    a_file(place)
    code = """if True:
        import torch, rnnjit
        fast = rnnjit.compile(torch.nn.RNN(3, 11))
        x = torch.randn(2, 5, 3)
        chosen = rnnjit.explain(fast, x).calls[0].chosen
        try:
            fast(x)
        except rnnjit.RNNJitWarning as warning:
            print(warning)
        fast(x)
        assert rnnjit.explain(fast, x).calls[0].chosen == chosen, rnnjit.explain(fast, x)
    """
    command = [sys.executable, "-W", "error:compiled kernels", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert str(place) in found.stdout


def problem():
    return rnnjit.Problem(torch.float32, "cpu", 1, 1, 1, False, False)


@pytest.mark.parametrize(
    "spoil",
    [
        writable_by_the_group,
        writable_by_everybody,
        shared_like_tmp,
        pytest.param(anothers, marks=as_root),
        pytest.param(a_link_to_anothers, marks=as_root),
    ],
)
def test_kernels_that_others_could_have_put_there_are_not_loaded(call, place, spoil):
    call()
    spoil(place)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    compiled, warned = call()
    assert compiled == ALL
    (warning,) = warned
    assert str(place) in warning
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


@as_root
def test_a_file_of_anothers_is_not_loaded(call, place):
    call()
    os.chown(place / f"{call.engine.keys[torch.float64]}.o", NOBODY, NOBODY)
    compiled, warned = call()
    assert compiled == [torch.float64]
    assert len(warned) == 1
    assert call() == ([], [])


def test_a_link_to_a_directory_of_the_users_own_is_followed(call, place, tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    place.parent.mkdir()
    place.symlink_to(tmp_path / "own")
    assert call() == (ALL, [])
    assert call() == ([], [])
    assert files(tmp_path / "own") == kept_names(call.engine)


@contextmanager
def largest_file(size):
    """Files cannot grow beyond a size: as on a full disk, their ends cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_whole_leaves_nothing_behind(call, place):
    with largest_file(10_000):
        compiled, warned = call()
    assert (compiled, len(warned), files(place)) == (ALL, 1, [])


def test_a_full_disk(call, place, mounted):
    mounted("size=16k,mode=0700")
    compiled, (warning,) = call()
    assert (compiled, files(place)) == (ALL, [])
    assert "No space left on device" in warning


def read_only(place, mounted):
    if os.geteuid() == 0:  # whom no mode keeps from writing
        mounted("ro,mode=0700")
    else:
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o500)


def test_a_read_only_directory(call, place, mounted):
    read_only(place, mounted)
    compiled, (warning,) = call()
    assert (compiled, files(place)) == (ALL, [])
    assert str(place) in warning
    place.chmod(0o700) if os.geteuid() else mounted("rw")


def test_a_read_only_directory_that_holds_the_kernels_serves_them(call, place, mounted):
    if os.geteuid() == 0:
        mounted("size=1m,mode=0700")
    call()
    read_only(place, mounted)
    assert call() == ([], [])
    place.chmod(0o700) if os.geteuid() else mounted("rw")


def test_without_a_home_directory(call, place, tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for variable in (object_cache.DIRECTORY_VARIABLE, "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(object_cache, "_COMPLAINED", {})  # it has no path to tell tests by
    compiled, warned = call()
    assert compiled == ALL
    (warning,) = warned
    assert object_cache.DIRECTORY_VARIABLE in warning
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"garbage" * 999, "half", "longer"])
def test_damaged_kernels_are_compiled_anew_and_mended(call, place, damage):
    call()
    file = place / f"{call.engine.keys[torch.float64]}.o"
    whole = file.read_bytes()
    file.write_bytes(
        {"half": whole[: len(whole) // 2], "longer": whole + b"\0"}.get(damage, damage)
    )
    assert call() == ([torch.float64], [])
    assert file.read_bytes() == whole
    assert call() == ([], [])


@pytest.mark.parametrize("damage", ["nothing", "garbage", "half", "other functions"])
def test_code_that_does_not_link_is_compiled_anew(call, place, damage):
    engine = call.engine
    call()
    parts = engine.split(object_cache.fetch(engine.keys[torch.float64]))
    broken = {
        "nothing": b"",
        "garbage": b"garbage" * 999,
        "half": engine.joined([part[: len(part) // 2] for part in parts]),
        "other functions": engine.joined([object_file()]),
    }
    object_cache.keep(engine.keys[torch.float64], broken[damage])
    assert call() == ([torch.float64], [])
    assert call() == ([], [])


def object_file():
    """Object code for this machine, of no function of ours."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return machine.emit_object(llvm.parse_assembly("define i32 @f() { ret i32 1 }"))


def test_kernels_of_another_processor_or_compiler_are_never_loaded(call, place, monkeypatch):
    engine = call.engine
    call()

    def compiling(isa, *kind):
        raise CompilingError

    def loaded():
        engine.library.library.made.clear()
        try:
            engine.load(torch.float64)
        except CompilingError:
            return False
        return True

    engine.replace_compiler(monkeypatch, compiling)
    assert loaded()
    for instructions in ("plain", "nonsense"):
        with monkeypatch.context() as other:
            if instructions == "plain":
                other.setenv(ISA_VARIABLE, instructions)
            else:
                other.setattr("rnnjit.codegen.kernel.version", lambda name: "0.0.1")
            assert not loaded()
    assert loaded()
