"""Protects against backends that break their contract: a clear error, and a usable module."""

import pickle

import pytest
import torch
from bad_calls import H0, PACKED, B, H, I, T, X, expect_eager, pair
from torch import nn

import rnnjit
from rnnjit import LayerGrads, LayerOutput
from rnnjit.testing import RecomputeBackend


class Breaking(RecomputeBackend):
    """Has its results spoilt, while `how` is set."""

    name = "breaking"

    def __init__(self, forward=None, backward=None):
        self.how, self.how_back = forward, backward

    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output if self.how is None else self.how(output)

    def backward(self, *args):
        grads = super().backward(*args)
        return grads if self.how_back is None else self.how_back(grads)


N = T * B
OUTPUTS = {
    "nothing": (lambda o: None, "forward: expected a LayerOutput, got NoneType"),
    "a pair": (lambda o: (o.y, o.h_n), "forward: expected a LayerOutput, got tuple"),
    "a triple": (tuple, "forward: expected a LayerOutput, got tuple"),
    "y alone": (lambda o: o.y, "forward: expected a LayerOutput, got Tensor"),
    "no y": (lambda o: o._replace(y=None), "y: expected a Tensor, got NoneType"),
    "numpy's y": (lambda o: o._replace(y=o.y.numpy()), "y: expected a Tensor, got ndarray"),
    "a row too few": (lambda o: o._replace(y=o.y[1:]), r"y: expected shape \[6, 5\], got .*\[5, 5"),
    "a column too many": (
        lambda o: o._replace(y=nn.functional.pad(o.y, (0, 1))),
        r"y: expected shape \[6, 5\], got shape \[6, 6\]",
    ),
    "steps apart": (lambda o: o._replace(y=o.y.view(T, B, H)), r"\[6, 5\], got shape \[3, 2, 5\]"),
    "y float64": (lambda o: o._replace(y=o.y.double()), "y: expected torch.float32, got .*float64"),
    "y on meta": (
        lambda o: o._replace(y=o.y.to("meta")),
        "y: expected a Tensor on cpu, got .*meta",
    ),
    "y by columns": (
        lambda o: o._replace(y=o.y.t().contiguous().t()),
        r"y: expected a contiguous Tensor, got one of strides \(1, 6\)",
    ),
    "no h_n": (lambda o: o._replace(h_n=None), "h_n: expected a tuple of 1 states, got NoneType"),
    "h_n bare": (
        lambda o: o._replace(h_n=o.h_n[0]),
        "h_n: expected a tuple of 1 states, got Tensor",
    ),
    "h_n in a list": (
        lambda o: o._replace(h_n=list(o.h_n)),
        "h_n: expected a tuple of 1 states, got list",
    ),
    "h_n twice": (
        lambda o: o._replace(h_n=o.h_n * 2),
        "h_n: expected a tuple of 1 states, got 2 of them",
    ),
    "h_n empty": (
        lambda o: o._replace(h_n=()),
        "h_n: expected a tuple of 1 states, got 0 of them",
    ),
    "h_n of None": (
        lambda o: o._replace(h_n=(None,)),
        r"h_n\[0\]: expected a Tensor, got NoneType",
    ),
    "h_n flat": (
        lambda o: o._replace(h_n=(o.h_n[0][0],)),
        r"h_n\[0\]: expected shape \[1, 2, 5\], got .*\[2, 5",
    ),
    "h_n turned": (
        lambda o: o._replace(h_n=(o.h_n[0].transpose(0, 1),)),
        r"\[1, 2, 5\], got .*\[2, 1, 5",
    ),
    "h_n float16": (
        lambda o: o._replace(h_n=(o.h_n[0].half(),)),
        r"h_n\[0\]: expected torch.float32, got torch.float16",
    ),
    "h_n on meta": (
        lambda o: o._replace(h_n=(o.h_n[0].to("meta"),)),
        r"h_n\[0\]: expected a Tensor on cpu, got one on meta",
    ),
}


def broken(run, message):
    with pytest.raises(rnnjit.BackendError, match=message) as caught:
        run()
    said = str(caught.value)
    assert said.startswith("backend 'breaking' broke its contract: ")
    assert "rnnjit check breaking" in said


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_forward_returns(name):
    how, message = OUTPUTS[name]
    backend = Breaking(how)
    rnn, fast = pair(backend)
    broken(lambda: fast(X, H0), message)
    with torch.no_grad():
        broken(lambda: fast(X, H0), message)
    backend.how = None
    expect_eager(rnn, fast)
    backend.how = how
    broken(lambda: fast(X, H0), message)  # on the short way too


@pytest.mark.parametrize("name", ["nothing", "numpy's y", "no h_n", "h_n bare", "y float64"])
def test_what_forward_returns_for_packed_input(name):
    how, message = OUTPUTS[name]
    backend = Breaking(how)
    rnn, fast = pair(backend)
    broken(lambda: fast(PACKED), message)
    backend.how = None
    expect_eager(rnn, fast)


def weights(change):
    return lambda grads: grads._replace(weights=change(grads.weights))


GRADS = {
    "nothing": (lambda g: None, "backward: expected LayerGrads, got NoneType"),
    "a triple": (tuple, "backward: expected LayerGrads, got tuple"),
    "a weight's too few": (weights(lambda w: w[1:]), "gradients of weights: expected 4 .*, got 3"),
    "no weights'": (weights(lambda w: None), "gradients of weights: expected 4 of them, got None"),
    "no x's": (lambda g: g._replace(x=None), "gradient of x: expected a Tensor, got NoneType"),
    "x's of a step": (
        lambda g: g._replace(x=g.x[:B]),
        r"of x: expected shape \[6, 4\], got .*\[2, 4",
    ),
    "x's by steps": (lambda g: g._replace(x=g.x.view(T, B, I)), r"\[6, 4\], got shape \[3, 2, 4\]"),
    "no hx's": (
        lambda g: g._replace(hx=None),
        "gradients of hx: expected 1 of them, got NoneType",
    ),
    "hx's bare": (
        lambda g: g._replace(hx=g.hx[0]),
        "gradients of hx: expected 1 of them, got Tensor",
    ),
    "hx's twice": (lambda g: g._replace(hx=g.hx * 2), "gradients of hx: expected 1 of them, got 2"),
    "no h0's": (
        lambda g: g._replace(hx=(None,)),
        r"gradient of hx\[0\]: expected a Tensor, got NoneType",
    ),
    "h0's flat": (
        lambda g: g._replace(hx=(g.hx[0][0],)),
        r"hx\[0\]: expected shape \[1, 2, 5\], got .*\[2, 5\]",
    ),
    "no w_ih's": (weights(lambda w: (None, *w[1:])), r"weights\[0\]: expected a Tensor, got None"),
    "w_hh's turned": (
        weights(lambda w: (w[0].t(), *w[1:])),
        r"weights\[0\]: expected shape \[5, 4\], got shape \[4, 5\]",
    ),
    "b_hh's wider": (
        weights(lambda w: (*w[:3], w[3].expand(2, H))),
        r"weights\[3\]: expected shape \[5\], got shape \[2, 5\]",
    ),
    "b_ih's float64": (
        weights(lambda w: (*w[:2], w[2].double(), w[3])),
        r"weights\[2\]: expected torch.float32, got torch.float64",
    ),
}


@pytest.mark.parametrize("name", GRADS)
def test_what_backward_returns(name):
    how, message = GRADS[name]
    backend = Breaking(backward=how)
    rnn, fast = pair(backend)
    x, h0 = X.clone().requires_grad_(), H0.clone().requires_grad_()
    broken(lambda: fast(x, h0)[0].sum().backward(), message)
    assert x.grad is None
    assert fast.weight_hh_l0.grad is None
    backend.how_back = None
    expect_eager(rnn, fast)


def test_a_gradient_that_is_not_needed_may_be_missing():
    backend = Breaking(backward=lambda grads: LayerGrads(None, (None,), grads.weights))
    rnn, fast = pair(backend)
    fast(X)[0].sum().backward()
    assert fast.weight_hh_l0.grad is rnn.weight_hh_l0.grad is not None


def test_inside_torch_compile():
    backend = Breaking(OUTPUTS["h_n flat"][0], GRADS["no x's"][0])
    rnn, fast = pair(backend)
    traced = torch.compile(fast, backend="eager", fullgraph=True)
    x = X.clone().requires_grad_()
    broken(lambda: traced(x), OUTPUTS["h_n flat"][1])
    backend.how = None
    broken(lambda: traced(x)[0].sum().backward(), GRADS["no x's"][1])
    backend.how_back = None
    torch.testing.assert_close(traced(x), rnn(x))


class WritesToInputs(RecomputeBackend):
    name = "breaking"
    which = 0

    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        if self.which is not None:
            (x, *hx)[self.which].mul_(2)
        return output


@pytest.mark.parametrize("which", [0, 1])
def test_inputs_that_are_written_to(which):
    backend = WritesToInputs()
    backend.which = which
    rnn, fast = pair(backend)
    broken(lambda: fast(X.clone(), H0.clone()), "expected x and hx to be left as they were")
    backend.which = None
    expect_eager(rnn, fast)


def test_auto_does_not_go_on_with_inputs_that_were_written_to(monkeypatch):
    backend = WritesToInputs()
    found = {"breaking": backend, "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    _, fast = pair()
    broken(lambda: fast(X.clone()), "left as they were")


def test_auto_goes_on_where_a_result_is_wrong(monkeypatch):
    found = {"breaking": Breaking(OUTPUTS["y float64"][0]), "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    rnn, fast = pair()
    with pytest.warns(rnnjit.RNNJitWarning, match="BackendError: backend 'breaking' broke"):
        y, _ = fast(X)
    torch.testing.assert_close(y, rnn(X)[0])


class BadShortcut(RecomputeBackend):
    """Right the long way; its short way returns what `how` makes of eager's result."""

    name = "breaking"

    def __init__(self, how):
        self.how = how

    def shortcut(self, spec, problem, y_shape):
        short = rnnjit.backends()["eager"].shortcut(spec, problem, y_shape)
        return lambda *given: self.how(short(*given))


SHORT = {
    "y alone": (lambda r: r[0], r"its shortcut: expected a pair \(y, h_n\), got Tensor"),
    "nothing": (lambda r: None, "its shortcut: expected a pair .*, got NoneType"),
    "y flat": (
        lambda r: (r[0].flatten(0, 1), r[1]),
        r"y: expected shape \[3, 2, 5\], got .*\[6, 5\]",
    ),
    "h_n flat": (
        lambda r: (r[0], (r[1][0][0],)),
        r"h_n\[0\]: expected shape \[1, 2, 5\], got shape \[2, 5\]",
    ),
    "h_n bare": (lambda r: (r[0], r[1][0]), "h_n: expected a tuple of 1 states, got Tensor"),
    "h_n twice": (lambda r: (r[0], r[1] * 2), "h_n: expected a tuple of 1 states, got 2 of them"),
    "y float64": (lambda r: (r[0].double(), r[1]), "y: expected torch.float32, got torch.float64"),
}


@pytest.mark.parametrize("name", SHORT)
def test_what_a_shortcut_returns(name):
    how, message = SHORT[name]
    backend = BadShortcut(how)
    rnn, fast = pair(backend)
    broken(lambda: fast(X), message)
    backend.how = lambda result: result
    expect_eager(rnn, fast)


class Asked(RecomputeBackend):
    name = "breaking"
    answer = None

    def why_not(self, spec, problem):
        return self.answer


@pytest.mark.parametrize("answer", [None, 0, True, object()])
def test_reasons_that_are_no_list(answer):
    backend = Asked()
    backend.answer = answer
    rnn, fast = pair(backend)
    broken(lambda: fast(X), f"why_not: expected a list of reasons, got {type(answer).__name__}")
    backend.answer = []
    expect_eager(rnn, fast)


def test_a_reason_that_is_no_list_of_them():
    backend = Asked()
    backend.answer = "only on Sundays"
    rnn, fast = pair(backend)
    with pytest.raises(rnnjit.UnsupportedError, match="call: only on Sundays\\. Use"):
        fast(X)
    backend.answer = []
    expect_eager(rnn, fast)


@pytest.mark.parametrize("answer", [[3], ("on Sundays", None), [["nested"]], [b"bytes"]])
@pytest.mark.parametrize("what", ["why_not", "why_not_cell", "missing", "defers"])
def test_reasons_that_are_no_strings(answer, what, monkeypatch):
    backend = Asked()
    backend.answer = []
    setattr(backend, what, lambda *_: answer)
    kind = type(next(each for each in answer if not isinstance(each, str))).__name__
    if what != "defers":  # a backend that is named is not asked
        said = f"expected a list of reasons, got one with a {kind}"
        with pytest.raises(rnnjit.BackendError, match=said):
            pair(backend)[1](X)
    found = {"breaking": backend, "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    rnn, fast = pair()
    expect_eager(rnn, fast)
    assert f"got one with a {kind}" in str(rnnjit.explain(fast, X))


@pytest.mark.parametrize("name", ["sizes_matter", "automatic"])
def test_auto_goes_on_where_a_declaration_cannot_be_read(name, monkeypatch):
    def unknown(self):
        raise OSError("no configuration file")

    cls = type("Unreadable", (Asked,), {name: property(unknown), "answer": ()})
    found = {"breaking": cls(), "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    rnn, fast = pair()
    expect_eager(rnn, fast)
    report = rnnjit.explain(fast, X)
    assert report.calls[0].chosen == "eager"
    assert "OSError: no configuration file" in str(report)


def test_the_error_survives_pickling():

    error = rnnjit.BackendError("mine", "y", "a Tensor", "None", inputs_changed=True)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_subclass_of_the_result_is_a_result():
    class Mine(LayerOutput):
        pass

    rnn, fast = pair(Breaking(lambda output: Mine(*output)))
    torch.testing.assert_close(fast(X), rnn(X))
