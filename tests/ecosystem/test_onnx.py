"""Protects ONNX export of a compiled model: PyTorch's own layer, which onnxruntime computes."""

import logging
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from covered import in_turn
from layer_kinds import KINDS, initial, states, width
from torch import nn

import rnnjit

T, B, I, H = 5, 2, 3, 4
# The exporters warn of deprecations of torch's own, and of what eager's forward does.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:The tensor attributes self.rnn._flat_weights",
    "ignore:Exporting a model to ONNX with a batch_size other than 1",
    "ignore:LSTM with projections is not supported with oneDNN",
)
STACKED = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}
LAYERS = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "bias": False}),
    ("LSTM", STACKED),
    ("GRU", {"bias": False}),
    ("RNN", STACKED),
]
#: What computes something, of ONNX's own operators.
COMPUTING = {"MatMul", "Gemm", "Sigmoid", "Tanh", "Relu", "RNN", "LSTM", "GRU"}


class Tagger(nn.Module):
    def __init__(self, kind="RNN", **config):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = KINDS[kind](I, H, **config)
        self.head = nn.Linear(width(self.rnn) * (1 + self.rnn.bidirectional), 2)

    def forward(self, x, hx):
        y, last = self.rnn(x, hx)
        return self.head(y), *states(last)


@pytest.fixture(autouse=True)
def _quiet_exporter():
    """It logs the libraries that it does not find."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def call(model, steps=T, batch=B):
    shape = (batch, steps) if model.rnn.batch_first else (steps, batch)
    return torch.randn(*shape, I), initial(model.rnn, batch)


def run(file, x, hx):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in (x, *states(hx))]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def operators(file):
    """How often each of ONNX's own operators that compute something stands in a model."""
    nodes = onnx.load(file).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    return Counter(node.op_type for node in nodes if node.op_type in COMPUTING)


@pytest.mark.parametrize(("layer", "dynamo"), in_turn(LAYERS, [True, False]), ids=str)
def test_onnxruntime_agrees_and_the_graph_is_eagers(layer, dynamo, tmp_path):
    kind, config = layer
    eager = Tagger(kind, **config).eval()
    fast = rnnjit.compile(eager)
    fast(*call(eager))
    files = []
    for name, model in (("eager", eager), ("fast", fast)):
        files.append(tmp_path / f"{name}.onnx")
        torch.onnx.export(model, call(eager), files[-1], dynamo=dynamo, verbose=False)
        onnx.checker.check_model(files[-1])
    assert operators(files[1]) == operators(files[0]) != Counter()
    inputs = call(eager)
    with torch.no_grad():
        expected = eager(*inputs)
    for got, wanted in zip(run(files[1], *inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_any_length_and_batch_by_the_recorded_layer(kind, tmp_path):
    """The older exporter writes ONNX's own operator, which unrolls nothing."""
    eager = Tagger(kind).eval()
    names = ["h0", "c0"][: len(states(call(eager)[1]))]
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        rnnjit.compile(eager),
        call(eager),
        file,
        dynamo=False,
        input_names=["x", *names],
        dynamic_axes={"x": {0: "T", 1: "B"}, **{name: {1: "B"} for name in names}},
    )
    assert operators(file)[kind] == 1
    for steps, batch in ((1, 1), (9, 4)):
        inputs = call(eager, steps, batch)
        with torch.no_grad():
            expected = eager(*inputs)[0].numpy()
        np.testing.assert_allclose(run(file, *inputs)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_projection_is_refused_by_the_older_exporter_as_for_eager(tmp_path):
    eager = Tagger("projected").eval()
    for model in (eager, rnnjit.compile(eager)):
        with pytest.raises(torch.onnx.errors.SymbolicValueError, match="LSTMs with projections"):
            torch.onnx.export(model, call(eager), tmp_path / "model.onnx", dynamo=False)


def test_the_compiled_path_is_back_after_an_export(tmp_path):
    eager = Tagger("LSTM").eval()
    fast = rnnjit.compile(eager)
    torch.onnx.export(fast, call(eager), tmp_path / "model.onnx", dynamo=True, verbose=False)
    inputs = call(eager)
    program = torch.export.export(fast, inputs)
    assert any("rnnjit.layer" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(fast(*inputs), eager(*inputs))


def test_a_program_that_holds_our_operator_is_refused_by_its_name(tmp_path):
    """What was traced for torch cannot become ONNX: the module must be exported itself."""
    fast = rnnjit.compile(Tagger("GRU").eval())
    program = torch.export.export(fast, call(fast))
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"rnnjit.layer"):
        torch.onnx.export(program, (), tmp_path / "model.onnx", verbose=False)
