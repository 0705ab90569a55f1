"""Protects torch's thread count, which a call in a forked child sets to one for a while."""

import sys

import pytest
from processes import assert_well, program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

# Threads that are inside at the same time leave in the order in which they came.
OVERLAP = """
from rnnjit.runtime.openmp import FORK, needs_one_thread, one_thread

def overlapping(first=lambda: None):
    inside, leave, counts = threading.Event(), threading.Event(), []

    def late():
        first()
        with one_thread():
            counts.append(torch.get_num_threads())
            inside.set()
            assert leave.wait(60)
            counts.append(torch.get_num_threads())
        counts.append(torch.get_num_threads())

    with one_thread():
        other = threading.Thread(target=late)
        other.start()
        assert inside.wait(60)
        counts.append(torch.get_num_threads())
    counts.append(torch.get_num_threads())
    leave.set()
    other.join()
    new = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    new.start()
    new.join()
    counts.append(torch.get_num_threads())
    return counts
"""

EXPECTED = "[1, 1, 3, 1, 3, 3, 3]"


def test_overlapping_threads_have_their_counts_back():
    check = """
torch.set_num_threads(3)
for _ in range(3):
    print(overlapping(), flush=True)
assert in_child(lambda: print(overlapping(), flush=True)) == 0
"""
    assert_well(program(OVERLAP + check), "\n".join([EXPECTED] * 4))


def test_each_thread_has_its_own_count_back():
    check = """
torch.set_num_threads(3)
print(overlapping(lambda: torch.set_num_threads(2)))
with one_thread():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1
torch.set_num_threads(1)
with one_thread():
    pass
assert torch.get_num_threads() == 1
"""
    # The late thread set its own, and its 2 is what a new thread finds at the end.
    assert_well(program(OVERLAP + check), "[1, 1, 3, 1, 2, 2, 3]")


def test_a_child_forked_while_threads_are_inside():
    check = """
torch.set_num_threads(3)
torch.get_num_threads()  # a thread that has not asked takes over what others set
leave = threading.Event()

def stay():
    with one_thread():
        inside.set()
        leave.wait(60)

inside = threading.Event()
other = threading.Thread(target=stay)
other.start()
assert inside.wait(60)
status = in_child(lambda: print(overlapping(), flush=True))
with one_thread():
    amid = in_child(lambda: print(torch.get_num_threads(), needs_one_thread(), flush=True))
leave.set()
other.join()
assert (status, amid) == (0, 0)
print(torch.get_num_threads())
"""
    assert_well(program(OVERLAP + check), f"{EXPECTED}\n1 False\n3")


def test_calls_of_many_threads_in_a_child():
    check = """
rnn = torch.nn.RNN(3, 5)
fast = rnnjit.compile(rnn)
x = torch.randn(4, 2, 3)

def child():
    counts = []

    def work():
        for _ in range(50):
            fast(x)[0].sum().backward()
        counts.append(torch.get_num_threads())

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for _ in range(50):
        fast(x)
    for worker in workers:
        worker.join()
    work()
    assert counts == [2] * 7, counts

torch.set_num_threads(2)
for _ in range(5):
    assert in_child(child) == 0
"""
    assert_well(program(check))
