"""Protects fallback in streams, traced graphs, gradient flow and copies of a module."""

import copy
import pickle

import pytest
import torch
from faulty import Faulty, X, expect_eager, installing, one_warning, quietly  # noqa: F401 - fixture
from torch import nn

import rnnjit
from rnnjit.tools.environment import environment


def test_a_stream(install):
    (first, _) = install(Faulty("first", 2, ("step",)), Faulty("second", 1))
    rnn = nn.RNN(4, 5, num_layers=2)
    frames = torch.randn(5, 2, 4)
    want, h_n = rnn(frames)
    first.error = None
    stream = rnnjit.Stream(rnn, batch_size=2)
    first.error = RuntimeError("the toolchain is gone")
    got = []
    one_warning(lambda: got.extend(stream.step(frame) for frame in frames), "'first'", "'second'")
    torch.testing.assert_close(torch.stack(got), want)
    torch.testing.assert_close(stream.state, h_n)
    assert stream.backend == "second"


def test_a_stream_on_a_named_backend(install):
    install(Faulty("first", 2, ("step",)))
    stream = rnnjit.Stream(nn.RNN(4, 5), backend="first")
    with pytest.raises(RuntimeError, match="the toolchain is gone"):
        stream.step(torch.zeros(1, 4))
    torch.testing.assert_close(stream.state, torch.zeros(1, 1, 5))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_inside_torch_compile(install, where):
    install(Faulty("first", 2, (where,)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    traced = torch.compile(rnnjit.compile(rnn), backend="aot_eager", fullgraph=True)
    one_warning(lambda: expect_eager(traced, rnn), "'first'", "the toolchain is gone")
    quietly(lambda: expect_eager(traced, rnn))


def test_a_named_backend_inside_torch_compile(install):
    install(Faulty("first", 2, ("forward",)))
    traced = torch.compile(
        rnnjit.compile(nn.RNN(4, 5), backend="first"), backend="aot_eager", fullgraph=True
    )
    with pytest.raises(RuntimeError, match="the toolchain is gone"):
        traced(X)


def test_gradient_flow(install):
    install(Faulty("first", 2, ("forward",)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    want = rnnjit.gradient_flow(rnnjit.compile(rnn, backend="second"), X).norms[""]
    found = []
    one_warning(lambda: found.append(rnnjit.gradient_flow(rnn, X).norms[""]), "'first'")
    torch.testing.assert_close(found[0], want)


def test_copies_know_what_failed(install):
    install(Faulty("first", 2, ("forward",)), Faulty("second", 1))
    rnn = nn.RNN(4, 5)
    fast = rnnjit.compile(rnn)
    one_warning(lambda: fast(X), "'first'")
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        quietly(lambda copied=copied: expect_eager(copied, rnn))


def test_a_backend_that_cannot_say_what_it_lacks(install):
    install(Faulty("first", 2, ("missing",)))
    said = "asked what it lacks, it raised RuntimeError: the toolchain is gone"
    without_inputs = rnnjit.explain(rnnjit.compile(nn.RNN(4, 5))).calls[0]
    assert without_inputs.verdicts[0].reasons == (said,)
    status = {backend.name: backend for backend in environment().backends}["first"]
    assert status.missing == (said,)
