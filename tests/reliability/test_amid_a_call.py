"""Protects calls that other threads, signal handlers or forks interrupt at critical moments."""

import threading

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.reference import ReferenceBackend


class Meddled(ReferenceBackend):
    """The reference, during whose calls somebody does something, once."""

    name = "meddled"

    def __init__(self, when, meddle):
        self._when, self._meddle = when, [meddle]

    def _now(self, when):
        if when == self._when and self._meddle:
            other = threading.Thread(target=self._meddle.pop())
            other.start()
            other.join(60)

    def why_not(self, spec, problem):
        self._now("chosen")
        return []

    def forward(self, *args):
        self._now("computed")
        return super().forward(*args)

    def shortcut(self, spec, problem, y_shape):
        self._now("remembered")


@pytest.mark.parametrize("when", ["chosen", "computed", "remembered"])
def test_the_mode_changes_amid_a_call(when):
    rnn = nn.RNN(3, 5, 2, dropout=0.5).eval()
    fast = rnnjit.compile(rnn)
    fast.backend = Meddled(when, fast.train)
    x = torch.randn(4, 2, 3)
    fast(x)
    rnn.train()
    torch.manual_seed(0)
    expected, _ = rnn(x)
    torch.manual_seed(0)
    torch.testing.assert_close(fast(x)[0], expected)


@pytest.mark.parametrize("when", ["chosen", "computed", "remembered"])
def test_the_backend_changes_amid_a_call(when):
    computed = []

    class Other(ReferenceBackend):
        name = "other"

        def forward(self, *args):
            computed.append(None)
            return super().forward(*args)

    fast = rnnjit.compile(nn.RNN(3, 5))
    fast.backend = Meddled(when, lambda: setattr(fast, "backend", Other()))
    fast(torch.randn(4, 2, 3))
    fast(torch.randn(4, 2, 3))
    assert len(computed) == 1


class Waiting(ReferenceBackend):
    """Its streams' steps give ones when they are told to go on."""

    name = "waiting"

    def __init__(self):
        self.entered, self.go_on = threading.Event(), threading.Event()

    def stepper(self, spec, dtype, batch):
        def step(x, hx, h_n, y, weights):
            self.entered.set()
            assert self.go_on.wait(60)
            y.fill_(1)

        return step


def test_a_stream_refuses_a_second_thread_amid_a_step():
    backend = Waiting()
    stream = rnnjit.Stream(nn.RNN(3, 5), backend=backend)
    found = []
    first = threading.Thread(target=lambda: found.append(stream.step(torch.zeros(1, 3))))
    first.start()
    assert backend.entered.wait(60)
    with pytest.raises(RuntimeError, match="a step of this stream is under way"):
        stream.step(torch.zeros(1, 3))
    backend.go_on.set()
    first.join(60)
    found.append(stream.step(torch.zeros(1, 3)))
    assert [y.tolist() for y in found] == [[[1.0] * 5]] * 2


def test_a_stream_refuses_what_a_signal_handler_asks_amid_a_step():
    refused = []

    class Reentered(ReferenceBackend):
        name = "reentered"

        def stepper(self, spec, dtype, batch):
            def step(x, hx, h_n, y, weights):
                if not refused:
                    with pytest.raises(RuntimeError, match="a step of this stream is under way"):
                        stream.step(x)
                    refused.append(True)
                y.fill_(1)

            return step

    stream = rnnjit.Stream(nn.RNN(3, 5), backend=Reentered())
    for _ in range(2):
        assert stream.step(torch.zeros(1, 3)).tolist() == [[1.0] * 5]
    assert refused


def test_a_stream_goes_on_in_a_child_that_was_forked_amid_a_step():
    from processes import assert_well, program

    source = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork amid threads, which is the test
case = rnnjit.Stream(nn.RNN(3, 5), backend="numba")
reference = rnnjit.Stream(case._module, backend="eager")
frame = torch.ones(1, 3)
torch.testing.assert_close(case.step(frame), reference.step(frame))
expected = reference.step(frame)
entered, go_on = threading.Event(), threading.Event()
stepper = case._stepper

def slowly(*args):
    entered.set()
    go_on.wait()
    stepper(*args)

case._stepper = slowly
thread = threading.Thread(target=case.step, args=(frame,))
thread.start()
entered.wait()
def child():
    case._stepper = stepper
    assert (case.step(frame) - expected).abs().max() < 1e-5
    other, begun, go = [], threading.Event(), threading.Event()
    def again(*args):
        begun.set()
        go.wait()
        stepper(*args)
    case._stepper = again
    amid = threading.Thread(target=lambda: other.append(case.step(frame)))
    amid.start()
    begun.wait()
    try:
        case.step(frame)
    except RuntimeError as error:
        assert "under way" in str(error)
    else:
        raise AssertionError("two threads were amid a step")
    go.set()
    amid.join()
    assert len(other) == 1
assert in_child(child) == 0
go_on.set()
thread.join()
"""
    assert_well(program(source))
