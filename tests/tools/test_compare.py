"""Protects `rnnjit.compare`: the calls of a model on every backend, as text, HTML and plot."""

import sys
import xml.etree.ElementTree as ET
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit.ir import RNN_RELU
from rnnjit.testing import RecomputeBackend


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.below = nn.RNN(4, 6, bidirectional=True, batch_first=True)
        self.above = nn.RNN(12, 5, num_layers=2, nonlinearity="relu", bias=False)

    def forward(self, x):
        y, _ = self.below(x)
        return self.above(y.transpose(0, 1))[0]


class Odd(RecomputeBackend):
    """Declines or raises, as told; its words are to be escaped."""

    def __init__(self, name, reasons=(), error=None):
        self.name, self.reasons, self.error = name, list(reasons), error

    def why_not(self, spec, problem):
        return self.reasons

    def forward(self, *args):
        if self.error is not None:
            raise self.error
        return super().forward(*args)


@pytest.fixture
def odd(monkeypatch):
    eager = rnnjit.backends()["eager"]
    found = {
        "declining": Odd("declining", ["H < 8 & <b>odd</b>"]),
        "failing": Odd("failing", error=RuntimeError("<script>")),
        "plain": Odd("plain"),
        "eager": eager,
    }
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)


def test_every_call_of_a_model_on_every_backend():
    found = rnnjit.compare(Model(), torch.randn(3, 7, 4), rounds=1)
    assert list(found.calls) == ["below", "above"]
    below, above = found.calls.values()
    assert (below.spec.num_directions, below.problem.T, below.problem.B) == (2, 7, 3)
    assert (above.spec.num_layers, above.spec.cell, above.spec.bias) == (2, RNN_RELU, False)
    for comparison in found.calls.values():
        others = [name for name in rnnjit.backends() if name != "eager"]
        assert [result.name for result in comparison.results] == others
        for result in comparison.results:
            if result.times is not None:
                assert result.values_error < 1e-5
                assert result.gradients_error < 1e-3


@pytest.mark.parametrize(
    ("inputs", "T", "B", "N"),
    [
        ((torch.randn(7, 4),), 7, 1, 7),
        ((torch.randn(7, 3, 4), torch.randn(1, 3, 6)), 7, 3, 21),
        ((pack_sequence([torch.randn(n, 4) for n in (2, 5, 3)], enforce_sorted=False),), 5, 3, 10),
    ],
)
def test_every_form_of_input(inputs, T, B, N):
    (comparison,) = rnnjit.compare(nn.RNN(4, 6), *inputs, rounds=1).calls.values()
    assert comparison.problem[2:5] == (T, B, N)
    assert all(result.failure == "" for result in comparison.results)


def test_compiled_modules_cells_and_float64():
    for module, x in (
        (rnnjit.compile(nn.RNN(4, 6)), torch.randn(5, 2, 4)),
        (nn.RNNCell(4, 6), torch.randn(2, 4)),
        (nn.RNN(4, 6, dtype=torch.float64), torch.randn(5, 2, 4, dtype=torch.float64)),
    ):
        (comparison,) = rnnjit.compare(module, x, rounds=1).calls.values()
        assert comparison.problem.dtype is x.dtype


STATE = torch.zeros(2, 5)
OTHERS = [
    (nn.LSTM(3, 5, 2), (torch.randn(4, 2, 3),), "LSTM(3, 5), 2 layers; T=4 B=2, float32"),
    (nn.GRU(3, 5, bias=False), (torch.randn(4, 2, 3),), "GRU(3, 5), no bias; T=4 B=2, float32"),
    (nn.LSTMCell(3, 5), (torch.randn(2, 3), (STATE, STATE)), "LSTM(3, 5); T=1 B=2, float32"),
    (nn.GRUCell(3, 5), (torch.randn(2, 3),), "GRU(3, 5); T=1 B=2, float32"),
]


@pytest.mark.parametrize(
    ("module", "inputs", "title"),
    OTHERS,
    ids=lambda v: None if isinstance(v, tuple) else str(v)[:12],
)
def test_other_layers_and_cells_are_compared_with_their_own(odd, module, inputs, title):
    compared = rnnjit.compare(module, *inputs, rounds=1, backends=["plain"])
    (found,) = compared.calls.values()
    layer = f"nn.{title.partition('(')[0]}"
    (plain,) = found.results
    assert found.eager.name == layer
    assert max(plain.values_error, plain.gradients_error) < 1e-5
    text = str(compared)
    assert text.splitlines()[0] == title
    assert f"x {layer}" in text
    assert "nn.RNN" not in text


def test_a_backend_that_computes_no_such_cell_is_a_row_with_its_reasons(monkeypatch):
    class OneGate(RecomputeBackend):
        name = "one-gate"

        def why_not_cell(self, cell):
            return [] if len(cell.gates) == 1 else ["only one gate is supported"]

    found = {"one-gate": OneGate(), "all": Odd("all"), "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    (comparison,) = rnnjit.compare(nn.GRU(3, 5), torch.randn(4, 2, 3), rounds=1).calls.values()
    result, other = comparison.results
    assert (result.name, result.reasons) == ("one-gate", ("only one gate is supported",))
    assert result.times is None
    assert (other.name, other.reasons) == ("all", ())


def test_nothing_of_the_module_changes():
    model = Model().eval()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        rnnjit.compare(model, torch.randn(3, 7, 4, generator=torch.Generator()), rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.below.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert all(p.grad is None for p in model.parameters())


def test_as_text(odd):
    text = repr(rnnjit.compare(Model(), torch.randn(3, 7, 4), rounds=1))
    assert text.startswith("below: RNN(4, 6), tanh, bidirectional; T=7 B=3, float32\n")
    assert "declining declines: H < 8 & <b>odd</b>" in text
    assert "failing failed: RuntimeError: <script>" in text
    assert "\x1b" not in text


def test_as_html(odd):
    text = rnnjit.compare(Model(), torch.randn(3, 7, 4), rounds=1)._repr_html_()
    page = ET.fromstring(f"<page>{text}</page>")
    tables = page.findall("table")
    assert [table.find("caption/b").text.partition(":")[0] for table in tables] == [
        "below",
        "above",
    ]
    rows = {
        row.find("th").text: [c.text for c in row.findall("td")] for row in tables[0].iter("tr")
    }
    assert rows["declining"] == ["declines: H < 8 & <b>odd</b>"]
    assert rows["failing"] == ["failed: RuntimeError: <script>"]
    assert len(rows["plain"]) == 6
    assert "<script>" not in text


def test_as_a_plot(odd, tmp_path):
    found = rnnjit.compare(Model(), torch.randn(3, 7, 4), rounds=1)
    figure = found.plot()
    (axes, _) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain"]
    below = found.calls["below"]
    plain = next(result for result in below.results if result.name == "plain")
    forward, both = below.speedup(plain)
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([forward, both])
    figure.savefig(tmp_path / "plot.png")


def test_pytorch_s_own_layer_is_one_row(odd):
    """`eager` is the same layer: two rows of it could only differ by noise."""
    found = rnnjit.compare(nn.RNN(4, 6), torch.randn(3, 7, 4), rounds=1, backends=["eager"])
    (comparison,) = found.calls.values()
    assert comparison.results == ()
    assert comparison.speedup(comparison.eager) == (1.0, 1.0)
    text = repr(found)
    assert sum(line.startswith("│") for line in text.splitlines()) == 1
    assert "nn.RNN: PyTorch's own layer, which the backend eager runs too." in " ".join(
        text.split()
    )


def test_what_auto_picks_names_its_row(monkeypatch):
    eager = rnnjit.backends()["eager"]
    found = {"declining": Odd("declining", ["not today"]), "eager": eager}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    text = repr(rnnjit.compare(nn.RNN(4, 6), torch.randn(3, 7, 4), rounds=1))
    assert "auto picks eager (row nn.RNN)." in text


def test_only_the_backends_that_are_asked_for(odd):
    found = rnnjit.compare(nn.RNN(4, 6), torch.randn(3, 7, 4), rounds=1, backends=["plain"])
    (comparison,) = found.calls.values()
    assert [result.name for result in comparison.results] == ["plain"]
    with pytest.raises(TypeError, match="backends must be a list of names"):
        rnnjit.compare(nn.RNN(4, 6), torch.randn(3, 7, 4), backends="plain")
    with pytest.raises(ValueError, match="'nubma' is not installed"):
        rnnjit.compare(nn.RNN(4, 6), torch.randn(3, 7, 4), backends=["nubma"])


def test_what_compiles_for_long_comes_last_and_is_announced(monkeypatch, capsys):
    order = []

    class Noted(Odd):
        def forward(self, *args):
            if self.name not in order:
                order.append(self.name)
                announced.append(capsys.readouterr().err)
            return super().forward(*args)

    announced = []
    found = {name: Noted(name) for name in ("patient", "quick")}
    found["patient"].compile_seconds = lambda spec, problem: 30.0
    monkeypatch.setattr(
        "rnnjit.dispatch.registry._installed",
        lambda: {**found, "eager": rnnjit.reference.BACKEND},
    )
    shown = rnnjit.compare(Model(), torch.randn(3, 7, 4), rounds=1)
    line = (
        "rnnjit.compare: patient may compile for 30 s or longer; "
        "backends= chooses what takes part\n"
    )
    assert order == ["quick", "patient"]
    assert announced == ["", line]
    assert capsys.readouterr().err == ""
    for comparison in shown.calls.values():
        assert [result.name for result in comparison.results] == ["patient", "quick"]


def test_times_that_neighbours_disturbed_are_marked(monkeypatch, odd):
    module, x = nn.RNN(4, 6), torch.randn(3, 7, 4)
    monkeypatch.setattr("rnnjit.runtime.timing.preemptions", count().__next__)
    found = rnnjit.compare(module, x, rounds=3, backends=["plain"])
    (comparison,) = found.calls.values()
    assert comparison.disturbed() == ["nn.RNN", "plain"]
    said = "The samples of nn.RNN and plain vary much, or other programs ran during them"
    assert said in " ".join(repr(found).split())
    assert said in found._repr_html_()


@pytest.mark.parametrize(
    ("args", "rounds", "error", "said"),
    [
        (("model",), 1, TypeError, "module must be a torch.nn.Module, got str"),
        ((nn.Linear(2, 2), torch.zeros(1, 2)), 1, ValueError, "calls no nn.RNN"),
        ((nn.RNN(2, 2), torch.zeros(1, 1, 2)), 0, ValueError, "rounds must be at least 1, got 0"),
        (
            (nn.RNN(2, 2, device="meta"), torch.zeros(1, 1, 2, device="meta")),
            *(1, ValueError, "input must be on the CPU to be compared, got meta"),
        ),
        ((nn.RNN(2, 2), torch.zeros(1, 1, 3)), 1, RuntimeError, "3"),
    ],
)
def test_what_cannot_be_compared(args, rounds, error, said):
    with pytest.raises(error, match=said):
        rnnjit.compare(*args, rounds=rounds)


def test_without_matplotlib_plots_say_what_to_install(monkeypatch):
    found = rnnjit.compare(nn.RNN(2, 3), torch.zeros(4, 1, 2), rounds=1, backends=["eager"])
    flow = rnnjit.gradient_flow(nn.RNN(2, 3), torch.zeros(4, 1, 2))
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = "a plot needs matplotlib, which is not installed: pip install 'matplotlib>=3.9'"
    for plot in (found.plot, flow.plot):
        with pytest.raises(ModuleNotFoundError) as raised:
            plot()
        assert str(raised.value) == said
