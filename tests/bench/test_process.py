"""Protects a contestant's process: commands, replies, and how it ends."""

import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from bench_contestants import Chatty, Crashing, Hoarding, Raising, Telling, Threads

from rnnjit.bench import arrays, isolated_worker, protocol
from rnnjit.bench.contestants import address, contestants, find
from rnnjit.bench.process import Worker, WorkerError
from rnnjit.bench.records import Case

CASE = Case(T=5, B=2, I=3, H=4)
TIMEOUT = 300


@pytest.fixture
def start():
    """Starts a worker that is over at the end of the test."""
    started = []

    def start(contestant, threads=1):
        started.append(Worker(contestant, threads))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def prepare(tmp_path):
    """The command for a case."""

    def command(case):
        arrays.save(tmp_path / "arrays", arrays.draw(case))
        return protocol.Prepare(case, str(tmp_path / "arrays"))

    return command


@pytest.mark.parametrize("name", ["eager", pytest.param("numba", marks=pytest.mark.full)])
def test_every_command_has_its_reply(start, prepare, tmp_path, name):
    worker = start(find(name))
    for case in (CASE, Case(T=5, B=2, I=3, H=4, mode="training")):
        assert worker.ask(prepare(case), TIMEOUT) > 0
        worker.ask(protocol.Results(str(tmp_path / "r")), TIMEOUT)
        results = arrays.load_results(tmp_path / "r")
        assert results["y"].shape == (5, 2, 4)
        assert ("grad x" in results) is (case.mode == "training")
    calls = worker.ask(protocol.Calibrate(1e-3), TIMEOUT)
    assert worker.ask(protocol.Sample(int(calls)), TIMEOUT) > 0
    assert worker.ask(protocol.Memory(), TIMEOUT) is not None
    assert worker.ask(protocol.Sample(1), TIMEOUT) > 0
    worker.close()
    assert not worker.alive


def test_a_stream_goes_on_from_call_to_call_and_its_results_begin_anew(start, prepare, tmp_path):
    worker = start(find("numba"))
    worker.ask(prepare(Case(T=1, B=2, I=3, H=4, mode="streaming")), TIMEOUT)
    found = []
    for name in "ab":
        worker.ask(protocol.Results(str(tmp_path / name)), TIMEOUT)
        worker.ask(protocol.Sample(3), TIMEOUT)
        found.append(arrays.load_results(tmp_path / name)["y"])
    assert np.array_equal(*found)


def test_what_it_prints_is_no_reply(start, prepare):
    assert start(Chatty()).ask(prepare(CASE), TIMEOUT) > 0


def test_an_exception_is_told_and_the_process_goes_on(start, prepare):
    worker = start(Raising())
    for _ in range(2):
        with pytest.raises(WorkerError, match="ValueError: no such"):
            worker.ask(prepare(CASE), TIMEOUT)
    with pytest.raises(WorkerError, match="no case is ready"):
        worker.ask(protocol.Sample(1), TIMEOUT)
    assert worker.alive


def test_a_crash_is_told_with_the_last_words(start, prepare):
    worker = start(Crashing())
    with pytest.raises(WorkerError, match="its process was killed by SIGABRT; the last words"):
        worker.ask(prepare(CASE), TIMEOUT)
    assert not worker.alive
    with pytest.raises(WorkerError, match="SIGABRT"):
        worker.ask(protocol.Sample(1), TIMEOUT)


@pytest.mark.parametrize(
    "name", ["onnxruntime", "openvino", pytest.param("jax", marks=pytest.mark.full)]
)
def test_the_process_of_a_peer_knows_neither_rnnjit_nor_torch(prepare, name):
    if reason := find(name).absent():
        pytest.skip(reason)
    imported = modules_after(isolated_worker.__file__, name, command=prepare(CASE))
    assert "rnnjit.bench.worker" in imported
    assert not imported & {"rnnjit", "rnnjit.frontend.compiled_layer", "torch"}


@pytest.mark.full
def test_the_process_of_a_backend_begins_as_its_users_do(prepare):
    imported = modules_after("-m", "rnnjit.bench.worker", "numba", command=prepare(CASE))
    assert {"rnnjit.frontend.compiled_layer", "torch"} <= imported


def modules_after(*arguments, command):
    """What a worker has imported when it has answered."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        input=msgspec.json.encode(command),
        capture_output=True,
        timeout=300,
    )
    assert b'"type":"Done"' in done.stdout
    return {line.split("|")[-1].strip() for line in done.stderr.decode().splitlines()}


def test_threads_are_as_many_as_the_case_says_and_processors_all(start, prepare, notes):
    case = Case(T=5, B=2, I=3, H=4, threads=2)
    # PyTorch is told by the case, libraries that start with the process by its variables.
    start(Threads(), 1).ask(prepare(case), TIMEOUT)
    cpus = len(os.sched_getaffinity(0))
    assert notes() == [{"torch": 2, "variables": ["1", "1"], "cpus": cpus}]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be confined")
def test_xla_gets_as_many_processors_as_threads():
    count = "import os; print(len(os.sched_getaffinity(0)))"
    code = f"from rnnjit.bench.contestants import jax_scan; jax_scan._use_processors(1); {count}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "1\n"


def test_the_memory_of_a_call_is_what_the_call_takes(start, prepare):
    worker = start(Hoarding())
    worker.ask(prepare(CASE), TIMEOUT)
    grown = worker.ask(protocol.Memory(), TIMEOUT)
    assert 2**26 - 2**23 < grown < 2**26 + 2**23  # the system counts in pages of many threads


def test_contestants_are_found_by_their_address():
    for each in contestants():
        found = find(address(each))
        assert (type(found), found.name, found.kind) == (type(each), each.name, each.kind)
    assert isinstance(find(address(Telling())), Telling)
    with pytest.raises(TypeError, match="expected a subclass of Contestant"):
        find("bench_contestants:NOTES")


@pytest.mark.parametrize(
    ("line", "reply"), [("", ""), ('{"type": "Nonsense"}\n', '"type":"Failed"')]
)
def test_the_worker_ends_with_its_input_and_answers_a_line_that_is_no_command(line, reply):
    command = [sys.executable, isolated_worker.__file__, "eager"]
    done = subprocess.run(command, input=line, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert reply in done.stdout
    assert bool(done.stdout) is bool(line)
