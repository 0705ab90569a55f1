"""Protects what dispatch costs: what it asks and remembers, and that new sizes cost little more."""

import shutil
import sys
import threading

import pytest
import torch
from processes import assert_well, program
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.codegen.row_slices import alike
from rnnjit.dispatch import choice, tuning_db
from rnnjit.dispatch.fallback import GENERATION
from rnnjit.dispatch.memory import Memory
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime import object_cache
from rnnjit.spec import Rows

SPEC = rnnjit.RNNSpec(4, 5)
PROBLEM = rnnjit.Problem(torch.float32, "cpu", 3, 2, 6, False, False)


class Asked(ReferenceBackend):
    """Counts what it is asked; declines what it is told to."""

    def __init__(self, name, priority, *, devices=None, missing=(), sizes_matter=False, most=None):
        self.name, self.priority, self.devices = name, priority, devices
        self.lacks, self.sizes_matter, self.most = list(missing), sizes_matter, most
        self.questions = []

    def missing(self):
        self.questions.append("missing")
        return self.lacks

    def why_not_cell(self, cell):
        self.questions.append("why_not_cell")
        return []

    def why_not(self, spec, problem):
        self.questions.append("why_not")
        return [] if self.most is None or self.most >= problem.N else ["too many rows"]

    def defers(self, spec, problem):
        self.questions.append("defers")
        return []


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache of the test's own, in which nothing was measured."""
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def install(monkeypatch):
    def put(*backends):
        ordered = sorted(backends, key=lambda backend: -backend.priority)
        found = {backend.name: backend for backend in ordered}
        monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
        return backends

    return put


def packed(*lengths, features=4):
    data = torch.randn(max(lengths), len(lengths), features)
    return pack_padded_sequence(data, sorted(lengths, reverse=True))


def test_nothing_of_a_backend_for_another_device_is_asked(install):
    far, near = install(Asked("far", 2, devices=("cuda",)), Asked("near", 1, devices=("cpu",)))
    fast = rnnjit.compile(nn.RNN(4, 5))
    far.questions.clear()  # of its cells
    for steps in (1, 2, 9):
        fast(torch.randn(steps, 2, 4))
    assert far.questions == []
    assert near.questions


def test_what_is_missing_is_asked_once(install):
    gone, here = install(Asked("gone", 2, missing=["not installed"]), Asked("here", 1))
    for _ in range(2):
        fast = rnnjit.compile(nn.RNN(4, 5))
        for steps in (1, 2, 9):
            fast(torch.randn(steps, 2, 4))
    assert gone.questions.count("missing") == 1
    assert not {"why_not", "defers"} & set(gone.questions)
    assert here.questions.count("missing") == 1
    GENERATION.advance()
    gone.lacks = []
    fast(torch.randn(3, 2, 4))
    assert gone.questions[-2:] == ["why_not", "defers"]


@pytest.mark.parametrize("named", [False, True])
def test_a_backend_is_asked_for_other_sizes_only_if_they_matter(install, named):
    (fixed,) = install(Asked("fixed", 1))
    fast = rnnjit.compile(nn.RNN(4, 5), backend="fixed" if named else "auto")
    for lengths in ((4, 4, 3), (4, 3, 3), (4, 2, 1)):
        fast(packed(*lengths))
    assert fixed.questions.count("why_not") == 1
    assert len(fast._choices) == 1


def test_a_backend_that_sizes_matter_to_is_asked_for_each(install):
    install(Asked("small", 2, sizes_matter=True, most=9), Asked("rest", 1))
    fast = rnnjit.compile(nn.RNN(4, 5))
    chosen = []
    for lengths in ((4, 4, 3), (4, 3, 2), (4, 4, 3), (4, 2, 1)):
        fast(packed(*lengths))
        chosen.append(rnnjit.explain(fast, packed(*lengths)).calls[0].chosen)
    assert chosen == ["rest", "small", "rest", "small"]
    found = {key[1].N: value[0].name for key, value in fast._choices.items()}
    assert found == {11: "rest", 9: "small", 7: "small"}


def test_one_that_is_asked_before_the_chosen_one_counts_too(install):
    install(Asked("small", 2, sizes_matter=True, most=9), Asked("rest", 1))
    found = choice.choose_for_sizes(SPEC, PROBLEM._replace(N=10), None)
    assert (found.backend.name, found.sizes_matter) == ("rest", True)
    install(Asked("small", 1, sizes_matter=True), Asked("rest", 2))
    found = choice.choose_for_sizes(SPEC, PROBLEM, None)
    assert (found.backend.name, found.sizes_matter) == ("rest", False)


def test_what_the_installed_backends_say_of_sizes_is_so():
    problems = [
        rnnjit.Problem(dtype, "cpu", T, B, N, N < T * B, grad)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for T, B, N in (
            (1, 1, 1),
            (1, 30, 30),
            (7, 3, 21),
            (7, 1, 7),
            (500, 900, 450_000),
            (2, 0, 0),
        )
        for grad in (False, True)
    ]
    # Others of the same powers of two, see `Backend.sizes_matter`.
    other = {0: 0, 1: 1, 2: 2, 3: 4, 7: 5, 30: 17, 500: 300, 900: 600}
    for backend in rnnjit.backends().values():
        if backend.sizes_matter or backend.missing():
            continue
        for spec in (SPEC, rnnjit.RNNSpec(4, 5, proj_size=2), rnnjit.RNNSpec(900, 2000)):
            for problem in problems:
                like = problem._replace(T=other[problem.T], B=other[problem.B], N=1)
                for ask in (backend.why_not, backend.defers):
                    assert ask(spec, problem) == ask(spec, like)


@pytest.mark.parametrize("traced", [False, True])
def test_a_choice_follows_the_thread_count(place, install, traced):
    install(Asked("usual", 2), Asked("tuned", 1))
    before = torch.get_num_threads()
    module = rnnjit.compile(nn.RNN(4, 5))
    fast = torch.compile(module, backend="eager", fullgraph=True) if traced else module
    ran = []
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        for backend in rnnjit.backends().values():
            backend.forward = watched(backend, ran)
        try:
            torch.set_num_threads(before + 1)
            tuning_db.keep(SPEC, PROBLEM, {"tuned": 1.0, "usual": 2.0})
            for threads in (before, before + 1, before, before + 1):
                torch.set_num_threads(threads)
                fast(x)
                fast(x)
                ran.append(rnnjit.explain(module, x).calls[0].chosen)
        finally:
            torch.set_num_threads(before)
    assert ran == [*["usual"] * 3, *["tuned"] * 3] * 2


def watched(backend, ran):
    def forward(*args):
        ran.append(backend.name)
        return ReferenceBackend.forward(backend, *args)

    return forward


def test_what_was_measured_is_read_once_and_anew_after_a_measurement(place, monkeypatch):
    read = []
    fetch = object_cache.fetch
    monkeypatch.setattr(object_cache, "fetch", lambda *args: read.append(args) or fetch(*args))
    for T in range(1, 200):
        assert tuning_db.recall(SPEC, PROBLEM._replace(T=T)) == {}
    assert read == []
    tuning_db.keep(SPEC, PROBLEM, {"eager": 1.0})
    for T in range(1, 200):
        found = tuning_db.recall(SPEC, PROBLEM._replace(T=T))
        assert found == ({"eager": 1.0} if T in (3, 4) else {})
    assert len(read) == 1
    tuning_db.keep(SPEC, PROBLEM, {"eager": 2.0})
    assert tuning_db.recall(SPEC, PROBLEM) == {"eager": 2.0}


def test_another_directory_has_measurements_of_its_own(place, monkeypatch):
    tuning_db.keep(SPEC, PROBLEM, {"eager": 1.0})
    assert tuning_db.recall(SPEC, PROBLEM) == {"eager": 1.0}
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, str(place.parent / "other"))
    assert tuning_db.recall(SPEC, PROBLEM) == {}
    monkeypatch.setenv(object_cache.DIRECTORY_VARIABLE, str(place))
    assert tuning_db.recall(SPEC, PROBLEM) == {"eager": 1.0}


def test_a_memory_is_bounded_and_forgets_what_was_found_too_late():
    memory = Memory(3)
    for number in range(10):
        memory.answers()[number] = number
        assert 0 < len(memory.answers()) <= 3 or number % 3 == 2
    late = memory.answers()
    GENERATION.advance()
    late["old"] = "found before the change"
    assert "old" not in memory.answers()


def test_a_memory_is_shared_by_threads():
    memory = Memory(50)
    wrong = []

    def work():
        for number in range(3000):
            answers = memory.answers()
            if answers.setdefault(number % 70, number % 70) != number % 70:
                wrong.append(number)
            if number % 100 == 0:
                GENERATION.advance()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_packed_calls_with_any_sum_of_lengths_are_right():
    torch.manual_seed(0)
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        rnn = nn.RNN(4, 70, **options)
        pairs = [
            rnnjit.compile(rnn, backend=name)
            for name in ("auto", "tvm")
            if name == "auto" or not rnnjit.backends()[name].missing()
        ]
        with torch.no_grad():
            for _ in range(25):
                x = packed(30, *torch.randint(1, 31, (15,)).tolist())
                want = rnn(x)
                for fast in pairs:
                    y, h_n = fast(x)
                    torch.testing.assert_close(y.data, want[0].data)
                    torch.testing.assert_close(h_n, want[1])


# New and repeated calls: the example of a packed batch, and dense ones of many classes of sizes.
CALLS = """
import random
import torch, rnnjit
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

random.seed(0)
torch.set_num_threads(1)
fast = rnnjit.compile(nn.RNN(32, 64))
HALF = rnnjit.compile(nn.RNN(32, 64).bfloat16())

def lengths():
    return sorted([30, *(random.randint(1, 30) for _ in range(15))], reverse=True)

def batch(lengths):
    return pack_padded_sequence(torch.zeros(30, 16, 32), lengths)

found = {sum(one): one for one in [lengths() for _ in range(200)]}
PACKED = [batch(one) for one in found.values()]
DENSE = [torch.zeros(T, B, 32) for T in (30, 31, 32, 33, 64, 65) for B in (1, 2, 16, 17)]
MORE = [x.bfloat16() for x in DENSE[::3]]
torch.set_grad_enabled(False)
for kind, module in ((PACKED, fast), (DENSE, fast), (MORE, HALF)):
    for x in kind[:2]:
        module(x)

def new():
    for x in PACKED[2:] + DENSE[2:]:
        fast(x)
    for x in MORE[2:]:
        HALF(x)
"""

AUDITED = """
import sys

seen, watching = [], False

def hook(event, arguments):
    if watching and event.split(".")[0] in ("open", "os", "shutil", "subprocess", "socket"):
        seen.append((event, arguments))

sys.addaudithook(hook)
watching = True
new()
watching = False
assert not seen, seen[:9]
"""

MARKED = """
import os

assert not os.path.exists("/begin of the calls")
new()
assert not os.path.exists("/end of the calls")
"""


def test_new_sizes_open_no_file():
    assert_well(program(CALLS + AUDITED, OMP_NUM_THREADS="1"))


@pytest.mark.full
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_new_sizes_make_no_system_call_on_files(tmp_path):
    # A file for each thread (-ff): in a file of all, another thread's call splits a line in two.
    prefix = ("strace", "-ff", "-e", "trace=%file,%desc", "-o", str(tmp_path / "log"))
    done = program(CALLS + MARKED, prefix=prefix, OMP_NUM_THREADS="1")
    if "ptrace" in done.stderr:
        pytest.skip("this machine lets nobody trace a process")
    assert_well(done)
    logs = [log.read_text().splitlines() for log in tmp_path.glob("log.*")]
    (lines,) = (log for log in logs if any("/begin of the calls" in line for line in log))
    (begin,) = (i for i, line in enumerate(lines) if "/begin of the calls" in line)
    (end,) = (i for i, line in enumerate(lines) if "/end of the calls" in line)
    # What allocates memory: malloc takes large blocks from the system.
    assert [line for line in lines[begin + 1 : end] if "MAP_ANONYMOUS" not in line] == []


@pytest.mark.parametrize("grad", [False, True])
def test_a_new_sum_of_lengths_runs_no_more_code_than_a_repeated_one(grad):
    fast = rnnjit.compile(nn.RNN(32, 64))
    batches = {
        sum(lengths): packed(*lengths, features=32)
        for lengths in ([30, *torch.randint(1, 31, (15,)).tolist()] for _ in range(60))
    }
    known = {}
    with torch.set_grad_enabled(grad):
        for N, x in batches.items():
            like = alike(Rows(30, 16, N))
            if like in known:
                assert steps_of(lambda x=x: fast(x)) <= 1.02 * known[like]
            else:
                fast(x)
                known[like] = steps_of(lambda x=x: fast(x))
    assert len(batches) > 3 * len(known)


def steps_of(call):
    """How many functions of Python and C a call runs."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count
