"""A backend that raises where it is told to, and what is expected of whoever meets it."""

import warnings

import pytest
import torch

import rnnjit
from rnnjit.dispatch.fallback import GENERATION
from rnnjit.testing import RecomputeBackend


class Faulty(RecomputeBackend):
    """Raises `error`, while it is set, wherever `where` says."""

    def __init__(self, name, priority, where=()):
        self.name, self.priority, self.where = name, priority, where
        self.error, self.calls = RuntimeError("the toolchain is gone"), 0

    def meet(self, place):
        self.calls += 1
        if place in self.where and self.error is not None:
            raise self.error

    def missing(self):
        self.meet("missing")
        return []

    def why_not(self, spec, problem):
        self.meet("why_not")
        return []

    def forward(self, *args):
        self.meet("forward")
        return super().forward(*args)

    def backward(self, *args):
        self.meet("backward")
        return super().backward(*args)

    def shortcut(self, spec, problem, y_shape):
        self.meet("shortcut")
        if "short call" not in self.where or problem.needs_grad:
            return None
        layer = spec.layer(0)
        rows = rnnjit.Rows(problem.T, problem.B, problem.N)

        def run(x, hx, weights):
            self.meet("short call")
            y, h_n, *_ = RecomputeBackend.forward(
                self, layer, rows, x.flatten(0, 1), hx, weights, False
            )
            return y.view(y_shape), h_n

        return run

    def stepper(self, spec, dtype, batch):
        if "step" not in self.where:
            return None

        def step(x, hx, h_n, y, weights):
            h_n[0].fill_(float("nan"))
            y.fill_(float("nan"))
            self.meet("step")

        return step


@pytest.fixture(name="install")
def installing(monkeypatch):
    """Installs backends in the order given, with eager behind them."""
    eager = rnnjit.backends()["eager"]

    def install(*backends):
        found = {backend.name: backend for backend in (*backends, eager)}
        monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
        GENERATION.advance()  # what is installed does not change in a process otherwise
        return backends

    return install


X = torch.randn(6, 3, 4)


def expect_eager(fast, rnn, x=X, *others):
    """Values and gradients are those of eager, within float32's rounding."""
    got, want = fast(x, *others), rnn(x, *others)
    torch.testing.assert_close(got, want)
    for module, (y, h_n) in ((fast, got), (rnn, want)):
        module.grads = torch.autograd.grad(
            (getattr(y, "data", y).sin().sum() + h_n.sum()), tuple(module.parameters())
        )
    torch.testing.assert_close(fast.grads, rnn.grads)


def one_warning(run, *words):
    with pytest.warns(rnnjit.RNNJitWarning) as caught:
        run()
    (warning,) = (each for each in caught if issubclass(each.category, rnnjit.RNNJitWarning))
    for word in words:
        assert word in str(warning.message)


def quietly(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run()
