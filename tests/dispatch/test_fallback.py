"""Protects fallback: `auto` goes on with one warning; a named backend raises its error."""

import pytest
import torch
from faulty import Faulty, X, expect_eager, installing, one_warning, quietly  # noqa: F401 - fixture
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit


@pytest.mark.parametrize("where", ["forward", "backward", "shortcut"])
def test_the_next_backend_answers_with_one_warning(install, where):
    first, second = install(Faulty("first", 2, (where,)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    one_warning(lambda: expect_eager(fast, rnn), "'first'", "the toolchain is gone", "did its work")
    before = first.calls
    quietly(lambda: expect_eager(fast, rnn))
    assert first.calls == before
    assert second.calls > 0


def test_explain_shows_what_failed(install):
    install(Faulty("first", 2, ("forward",)), Faulty("second", 1))
    fast = rnnjit.compile(nn.RNN(4, 5))
    one_warning(lambda: fast(X), "backend 'second' did its work")
    report = rnnjit.explain(fast, X).calls[0]
    assert report.chosen == "second"
    assert report.verdicts[0].reasons == (
        "it raised RuntimeError: the toolchain is gone, so that 'auto' leaves it out",
    )
    assert rnnjit.explain(rnnjit.compile(nn.RNN(4, 5)), X).calls[0].chosen == "second"


@pytest.mark.parametrize("where", ["forward", "backward", "short call", "shortcut"])
def test_a_named_backend_raises_its_own_error(install, where):
    (first,) = install(Faulty("first", 2, (where,)))
    cause = OSError("no such compiler")
    first.error.__cause__ = cause
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn, backend="first")

    def call():
        if where == "backward":
            fast(X)[0].sum().backward()
        else:
            with torch.no_grad():
                fast(X)
                fast(X)

    with pytest.raises(RuntimeError, match="the toolchain is gone") as caught:
        call()
    assert caught.value is first.error
    assert caught.value.__cause__ is cause
    assert [v.backend.name for v in rnnjit.explain(fast, X).calls[0].verdicts] == ["first"]
    first.error = None
    quietly(lambda: expect_eager(fast, rnn))


def test_a_name_still_reaches_what_auto_leaves_out(install):
    install(Faulty("first", 2, ("forward",)))
    rnn = nn.RNN(4, 5)
    one_warning(lambda: rnnjit.compile(rnn)(X), "backend 'eager' did its work")
    with pytest.raises(RuntimeError, match="the toolchain is gone"):
        rnnjit.compile(rnn, backend="first")(X)


def test_a_remembered_short_way_that_fails(install):
    first, _ = install(Faulty("first", 2, ("short call",)), Faulty("second", 1))
    error, first.error = first.error, None
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    with torch.no_grad():
        quietly(lambda: fast(X))
        first.error = error
        one_warning(lambda: torch.testing.assert_close(fast(X), rnn(X)), "'first'", "'second'")
        quietly(lambda: torch.testing.assert_close(fast(X), rnn(X)))


def test_a_backend_that_fails_after_many_calls(install):
    (first,) = install(Faulty("first", 2, ("forward", "backward")))
    first.error = None
    rnn = nn.RNN(4, 5, num_layers=2, bidirectional=True)
    fast = rnnjit.compile(rnn)
    for _ in range(3):
        quietly(lambda: expect_eager(fast, rnn))
    first.error = ImportError("libLLVM.so: cannot open shared object file")
    one_warning(lambda: expect_eager(fast, rnn), "ImportError", "libLLVM")
    quietly(lambda: expect_eager(fast, rnn))


def test_between_forward_and_backward(install):
    install(Faulty("first", 2, ("backward",)))
    rnn = nn.RNN(4, 5, num_layers=3)
    fast = rnnjit.compile(rnn)
    one_warning(lambda: expect_eager(fast, rnn), "the reference did its work")


def test_dropout_draws_the_same_masks(install):
    install(Faulty("first", 2, ("forward",)))
    rnn = nn.RNN(4, 5, num_layers=3, dropout=0.5)
    fast = rnnjit.compile(rnn)
    torch.manual_seed(7)
    want = rnn(X)
    torch.manual_seed(7)
    one_warning(lambda: torch.testing.assert_close(fast(X), want), "'first'")


def test_packed_input(install):
    install(Faulty("first", 2, ("forward",)))
    rnn = nn.RNN(4, 5)
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 5, 1)], enforce_sorted=False)
    fast = rnnjit.compile(rnn)
    one_warning(lambda: expect_eager(fast, rnn, packed), "'first'")


def test_several_fail(install):
    install(Faulty("first", 3, ("forward",)), Faulty("second", 2, ("forward",)), Faulty("third", 1))
    fast = rnnjit.compile(nn.RNN(4, 5))
    with pytest.warns(rnnjit.RNNJitWarning) as caught:
        fast(X)
    assert [str(w.message).split()[1] for w in caught] == ["'first'", "'second'"]
    assert all("'third' did its work" in str(w.message) for w in caught)


def test_where_all_fail_the_last_error_comes_through_and_none_is_left_out(install, monkeypatch):
    first, _ = install(Faulty("first", 2, ("forward",)), Faulty("second", 1, ("forward",)))
    eager = rnnjit.backends()["eager"]

    def forward(*args):
        raise RuntimeError("eager's own")

    with monkeypatch.context() as patch:
        patch.setattr(type(eager), "forward", forward)
        fast = rnnjit.compile(nn.RNN(4, 5))
        with pytest.raises(RuntimeError, match="eager's own"):
            quietly(lambda: fast(X))
    first.error = None
    quietly(lambda: fast(X))
    assert rnnjit.explain(fast, X).calls[0].chosen == "first"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_memory_at_its_end_is_not_the_backends_fault(install, error):
    (first,) = install(Faulty("first", 2, ("forward", "backward")))
    first.error = error
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    with pytest.raises(type(error)):
        quietly(lambda: fast(X))
    first.error = None
    y = fast(X)[0]
    first.error = error
    with pytest.raises(type(error)):
        y.sum().backward()
    first.error = None
    quietly(lambda: expect_eager(fast, rnn))
    assert rnnjit.explain(fast, X).calls[0].chosen == "first"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_failure_comes_through(install, error):
    (first,) = install(Faulty("first", 2, ("forward",)))
    first.error = error
    fast = rnnjit.compile(nn.RNN(4, 5))
    with pytest.raises(type(error)):
        quietly(lambda: fast(X))
    first.error = None
    quietly(lambda: fast(X))
    assert rnnjit.explain(fast, X).calls[0].chosen == "first"


@pytest.mark.parametrize("where", ["missing", "why_not"])
def test_a_backend_that_fails_when_asked(install, where):
    install(Faulty("first", 2, (where,)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    quietly(lambda: expect_eager(fast, rnn))
    report = rnnjit.explain(fast, X).calls[0]
    assert report.chosen == "second"
    assert report.verdicts[0].reasons == (
        "asked for its answer, it raised RuntimeError: the toolchain is gone",
    )
    with pytest.raises(RuntimeError, match="the toolchain is gone"):
        rnnjit.compile(rnn, backend="first")(X)


def test_reasons_given_as_one_string(install):
    class OneString(Faulty):
        def why_not(self, spec, problem):
            return "not today"

    install(OneString("first", 2))
    fast = rnnjit.compile(nn.RNN(4, 5))
    assert rnnjit.explain(fast, X).calls[0].verdicts[0].reasons == ("not today",)
