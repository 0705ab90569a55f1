"""Protects compile-once: with concurrent requests, failures, signals and forks."""

import ctypes
import os
import signal
import sys
import threading
import time

import pytest

from rnnjit.dispatch.blame import from_outside
from rnnjit.runtime.compile_once import COMPILING, CompileOnce, once_compiled


def at_once(count, call):
    """The results of a call on some threads at once, an exception where it raised."""
    found = []

    def run():
        try:
            found.append(call())
        except ValueError as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_that_ask_at_once_get_what_was_made_once():
    made = []

    @CompileOnce
    def doubled(x):
        time.sleep(0.05)
        made.append(threading.current_thread())
        return [2 * x]

    found = at_once(8, lambda: doubled(3))
    assert found == [[6]] * 8
    assert all(each is found[0] for each in found)
    assert len(made) == 1
    assert made[0] is not threading.main_thread()


def test_all_that_wait_share_one_failure_and_the_next_call_tries_anew():
    tried = []

    @CompileOnce
    def failing(x):
        tried.append(x)
        time.sleep(0.1)
        if len(tried) == 1:
            raise ValueError("no compiler")
        return x

    found = at_once(8, lambda: failing(1))
    assert [str(error) for error in found] == ["no compiler"] * 8
    assert tried == [1]
    assert failing(1) == 1


def test_what_is_made_may_need_what_is_made_once():
    inner = CompileOnce(lambda x: x + 1)
    outer = CompileOnce(lambda x: 10 * inner(x))
    found = []
    thread = threading.Thread(target=lambda: found.append(outer(1)), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert found == [20]


def test_where_no_thread_can_be_started_the_caller_makes_it(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    doubled = CompileOnce(lambda x: 2 * x)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert doubled(4) == 8


@pytest.fixture
def alarm():
    """Sets a handler that raises after some seconds, in the main thread."""

    def set_alarm(error, seconds=0.05):
        def handler(number, frame):
            raise error

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.getsignal(signal.SIGALRM)
    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


posix = pytest.mark.skipif(sys.platform == "win32", reason="no alarms, no fork")


@posix
def test_a_time_limit_ends_the_waiting_and_is_no_failure_of_a_backend(alarm):
    @CompileOnce
    def slow(x):
        time.sleep(0.5)
        return x

    alarm(ValueError("out of time"))
    with pytest.raises(ValueError, match="out of time") as caught:
        slow(1)
    assert from_outside(caught.value)
    assert slow(1) == 1


def test_what_the_function_raises_is_a_failure():
    @CompileOnce
    def failing(x):
        raise ValueError(x)

    with pytest.raises(ValueError, match="1") as caught:
        failing(1)
    assert not from_outside(caught.value)


@posix
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it is multi-threaded
def test_ctrl_c_while_a_fork_waits_for_a_compiler_comes_after_it(alarm):
    entered, done, children = threading.Event(), [], []

    def compile_slowly():
        with COMPILING:
            entered.set()
            time.sleep(0.5)
            done.append(True)

    thread = threading.Thread(target=compile_slowly)
    thread.start()
    entered.wait()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def fork():
        alarm(KeyboardInterrupt())
        children.append(os.fork())
        if children[0] == 0:
            os._exit(0 if done and COMPILING.lock.acquire(blocking=False) else 1)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        fork()
    signal.signal(signal.SIGINT, before)
    thread.join()
    assert os.waitpid(children[0], 0)[1] == 0


@pytest.fixture
def small_stacks():
    """The process's threads have small stacks."""
    before = threading.stack_size(64 << 10)
    yield 64 << 10
    threading.stack_size(before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size that Linux gave a thread")
def test_its_thread_has_a_large_stack_whatever_the_process_says(small_stacks):
    def size():
        libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        libc.pthread_self.restype = ctypes.c_void_p
        libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes)
        found = ctypes.c_size_t()
        libc.pthread_attr_getstacksize(attributes, ctypes.byref(found))
        libc.pthread_attr_destroy(attributes)
        return found.value

    assert CompileOnce(lambda key: size())(0) >= 8 << 20
    found = []
    thread = threading.Thread(target=lambda: found.append(size()))
    thread.start()
    thread.join()
    assert found[0] < 1 << 20
    assert threading.stack_size() == small_stacks


def test_stacks_that_are_large_already_stay_as_large(small_stacks):
    threading.stack_size(64 << 20)
    assert CompileOnce(lambda key: threading.current_thread().name)(0).startswith("rnnjit: ")
    assert threading.stack_size() == 64 << 20


def test_a_size_set_while_a_thread_starts_is_kept(small_stacks, monkeypatch):
    start = threading.Thread.start

    def interrupted(thread):
        threading.stack_size(128 << 10)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    assert CompileOnce(lambda key: key + 1)(1) == 2
    assert threading.stack_size() == 128 << 10


def test_threads_that_start_compilations_at_once_leave_the_size_as_it_was(small_stacks):
    makers = [CompileOnce(lambda key: time.sleep(0.001) or key) for _ in range(50)]
    threads = [threading.Thread(target=make, args=(1,)) for make in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [make.made for make in makers] == [{1: 1}] * 50
    assert threading.stack_size() == small_stacks


def test_where_sizes_cannot_be_set_threads_start_all_the_same(monkeypatch):
    def refuse(*_):
        raise RuntimeError("setting stack size not supported")

    monkeypatch.setattr(threading, "stack_size", refuse)
    assert CompileOnce(lambda key: threading.current_thread().name)(0).startswith("rnnjit: ")


def test_what_waits_for_a_compilation_runs_where_its_result_is_kept():
    ran = []

    @CompileOnce
    def inner(key):
        once_compiled(lambda: ran.append((key, inner.made, outer.made.copy())))
        return key

    @CompileOnce
    def outer(key):
        assert inner(key) + inner(key + 1) == 2 * key + 1
        assert not ran
        return key

    assert outer(1) == 1
    assert ran == [(1, {1: 1, 2: 2}, {1: 1}), (2, {1: 1, 2: 2}, {1: 1})]
    once_compiled(lambda: ran.append("at once"))
    assert ran.pop() == "at once"


def test_an_error_of_what_waited_for_a_compilation_does_not_lose_the_result():
    made = []

    def refuse():
        raise UserWarning("no cache")

    @CompileOnce
    def doubled(key):
        made.append(key)
        once_compiled(refuse)
        return 2 * key

    with pytest.raises(UserWarning, match="no cache") as caught:
        doubled(4)
    assert not from_outside(caught.value)
    assert doubled(4) == 8
    assert made == [4]
