"""Protects the tools of torch that look into a model: fx, jit, ONNX, quantization, overrides."""

import copy
import warnings
from functools import partial

import onnxruntime
import pytest
import torch
from layer_kinds import KINDS, each_kind, initial, states
from torch import nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import rnnjit

# Torch's own layer warns of this.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(5, 2, dtype=torch.bool)
MASK[3] = True


class Layers(nn.Module):
    def __init__(self, make=nn.RNN):
        super().__init__()
        self.rnn, self.out = make(3, 4, num_layers=2), nn.Linear(4, 2)

    def forward(self, x):
        y, h_n = self.rnn(x)
        return self.out(y) + self.rnn(x, h_n)[1].sum()


class Cells(nn.Module):
    def __init__(self, make=nn.RNNCell):
        super().__init__()
        self.cell = make(3, 4)

    def forward(self, x):
        return self.cell(x[1], self.cell(x[0]))


class Pairs(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.lstm = make(3, 4)

    def forward(self, x):
        h, c = self.lstm(x)[-1]
        return self.lstm(x, (h, c))[0] + h


class PairCells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x):
        h, c = self.cell(x[0])
        return self.cell(x[1], (h, c))[0] + c


MODELS = {
    "RNN": Layers,
    "RNNCell": Cells,
    "LSTM": partial(Pairs, nn.LSTM),
    "projected": partial(Pairs, KINDS["projected"]),
    "LSTMCell": PairCells,
    "GRU": partial(Layers, nn.GRU),
    "GRUCell": partial(Cells, nn.GRUCell),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def pair(make):
    torch.manual_seed(0)
    model = make()
    return model, rnnjit.compile(model)


@models
def test_fx_traces_a_model_in_which_they_are_leaves(make):
    model, fast = pair(make)
    graph, expected = torch.fx.symbolic_trace(fast), torch.fx.symbolic_trace(model)
    assert [(n.op, n.target, n.args) for n in graph.graph.nodes if n.op == "call_module"] != []
    assert str(graph.graph) == str(expected.graph)
    torch.testing.assert_close(graph(X), model(X))
    for name, module in graph.named_children():
        assert module is getattr(fast, name)


@each_kind
def test_fx_traces_a_call_with_resets(make):
    class Resets(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make(3, 4)

        def forward(self, x, mask):
            return self.rnn(x, None, mask)[0]

    fast = rnnjit.compile(Resets())
    torch.testing.assert_close(torch.fx.symbolic_trace(fast)(X, MASK), fast(X, MASK))


def test_fx_of_a_layer_itself_raises_as_eager():
    for module in (nn.RNN(3, 4), rnnjit.compile(nn.RNN(3, 4))):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(module)


@models
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripting_takes_torchs_own_layer_and_says_so(make):
    model, fast = pair(make)
    with pytest.warns(rnnjit.RNNJitWarning, match=r"torch.jit.script runs torch's own layer"):
        scripted = torch.jit.script(copy.deepcopy(fast))
    torch.testing.assert_close(scripted(X), model(X))
    assert any(isinstance(m, rnnjit.frontend.compiled_base.CompiledBase) for m in fast.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripting_a_layer_itself():
    cell = nn.RNNCell(3, 4)  # torch.jit.script cannot call an nn.RNN that is not part of a model
    fast = rnnjit.compile(cell)
    with pytest.warns(rnnjit.RNNJitWarning, match=r"torch.jit.script"):
        scripted = torch.jit.script(fast)
    torch.testing.assert_close(scripted(X[0]), cell(X[0]))
    torch.testing.assert_close(fast(X[0]), cell(X[0]))


# ONNX has no nn.LSTM with a projection.
@pytest.mark.parametrize("make", [m for name, m in MODELS.items() if name != "projected"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter itself is deprecated
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_older_onnx_exporter_writes_a_file(make, tmp_path):
    model, fast = pair(make)
    file = tmp_path / "model.onnx"
    torch.onnx.export(fast, (X,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(X))


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter itself is deprecated
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_older_onnx_exporter_takes_a_layer_itself(make, tmp_path):
    layer, file, x = make(3, 4), tmp_path / "layer.onnx", torch.randn(5, 2, 3)
    # It passes every argument that has a default by its place.
    torch.onnx.export(rnnjit.compile(layer), (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    got, *_ = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), layer(x)[0])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel")
@pytest.mark.parametrize(
    "cls", [nn.RNNCell, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell], ids=lambda cls: cls.__name__
)
def test_quantization_says_what_it_leaves(cls):
    model = nn.Sequential(cls(3, 4), nn.Linear(4, 2))
    fast = rnnjit.compile(model)
    with pytest.warns(rnnjit.RNNJitWarning, match=f"does not quantize a compiled {cls.__name__}:"):
        quantized = torch.ao.quantization.quantize_dynamic(fast, {cls, nn.Linear})
    assert type(quantized[0]) is type(fast[0])
    torch.testing.assert_close(quantized[0](X[0]), model[0](X[0]))
    assert type(quantized[1]) is not nn.Linear


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel")
def test_quantization_is_quiet_of_what_torch_leaves_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("error", rnnjit.RNNJitWarning)
        # Torch does not quantize nn.RNN either.
        torch.ao.quantization.quantize_dynamic(rnnjit.compile(Layers()), {nn.Linear})


def per_sample(module, x):
    for parameter in module.parameters():
        parameter.grad_sample = None
    y, _ = call_for_per_sample_grads(module, batch_size=x.shape[0])(x)
    y.sum().backward()
    return [parameter.grad_sample.clone() for parameter in module.parameters()]


@each_kind
def test_gradients_of_each_sample(make):
    """In float64: in float32, torch's own nn.LSTM calls what its per-sample gradients lack."""
    torch.manual_seed(0)
    rnn, x = make(3, 4, batch_first=True, dtype=torch.float64), X.double()
    for got, expected in zip(per_sample(rnnjit.compile(rnn), x), per_sample(rnn, x), strict=True):
        torch.testing.assert_close(got, expected)


class Wrapper:
    """No tensor, but torch's functions take it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        return getattr(self.tensor, name)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        def unwrapped(value):
            return value.tensor if isinstance(value, cls) else value

        return func(*tree_map(unwrapped, args), **(kwargs or {}))


class Tagged(torch.Tensor):
    """A subclass whose type torch's functions keep."""


@pytest.mark.parametrize("wrap", [Wrapper, lambda x: x.as_subclass(Tagged)])
def test_what_overrides_torchs_functions_sees_torchs_own_layer(wrap):
    zeros = torch.zeros(2, 4)
    for rnn, x, hx in (
        *((make(3, 4), X, None) for make in (nn.RNN, nn.LSTM, nn.GRU)),
        *((make(3, 4), X[0], zeros) for make in (nn.RNNCell, nn.GRUCell)),
        (nn.LSTMCell(3, 4), X[0], (zeros, zeros)),
    ):
        fast = rnnjit.compile(rnn)
        hx = initial(rnn, 2) if hx is None else hx
        wrapped = tuple(map(wrap, hx)) if isinstance(hx, tuple) else wrap(hx)
        for args in ((wrap(x),), (wrap(x), hx), (x, wrapped), (wrap(x), wrapped)):
            got, expected = fast(*args), rnn(*args)
            torch.testing.assert_close(got, expected)
            assert type(states(got)[0]) is type(states(expected)[0])
            assert "must see torch's own layer" in rnnjit.explain(fast, *args).calls[0].note


class Recording(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("make", "function"),
    [(nn.RNN, torch.rnn_tanh), (nn.LSTM, torch.lstm), (nn.GRU, torch.gru)],
    ids=["RNN", "LSTM", "GRU"],
)
@pytest.mark.parametrize("before", [0, 3])
def test_a_mode_of_torchs_functions_sees_torchs_own_layer(before, make, function):
    rnn = make(3, 4)
    fast = rnnjit.compile(rnn)
    for _ in range(before):
        fast(X)
    with Recording() as mode:
        fast(X)
        assert "TorchFunctionMode" in rnnjit.explain(fast, X).calls[0].note
    assert function in mode.seen
    with torch.device("cpu"):  # a mode that only says where new tensors are
        assert rnnjit.explain(fast, X).calls[0].chosen == "numba"


@models
def test_parameters_are_converted_where_torch_swaps_them(make):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for convert_original in (False, True):
            model, fast = pair(make)
            parameters = list(fast.parameters())
            (model if convert_original else fast).double()
            assert all(a is b for a, b in zip(parameters, fast.parameters(), strict=True))
            assert torch.__future__.get_swap_module_params_on_conversion()
            torch.testing.assert_close(fast(X.double()), model(X.double()))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
