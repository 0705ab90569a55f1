"""Protects the traced path: one operator for each layer in torch.compile and torch.export."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations

import rnnjit
from rnnjit import LayerSpec, Rows
from rnnjit.dispatch.registry import key_of
from rnnjit.execution import torch_ops as ops
from rnnjit.ir import RNN_TANH
from rnnjit.reference import layer_forward
from rnnjit.testing import RecomputeBackend
from rnnjit.testing.user_cells import known

BACKENDS = [RecomputeBackend(), *(b for b in rnnjit.backends().values() if not b.missing())]
T, B, I, H = 4, 3, 2, 5
# What an operator is told of the layer: the cell, H, whether it has biases, P.
CELL = (RNN_TANH.text, H, True, 0)
# Dynamo and Inductor warn of torch's own deprecations when they are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")


class Keeping(RecomputeBackend):
    """Needs what its forward pass saved, which no graph carries."""

    name = "keeping"

    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output._replace(saved=(x.clone(),) if keep else ())

    def backward(self, layer, rows, x, hx, weights, output, *rest):
        assert torch.equal(output.saved[0], x)
        return super().backward(layer, rows, x, hx, weights, output, *rest)


class Tagger(nn.Module):
    def __init__(self, **config):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.RNN(I, H, dtype=torch.float64, **config)
        self.head = nn.Linear(H * (1 + self.rnn.bidirectional), 2, dtype=torch.float64)

    def forward(self, x, hx=None):
        y, h = self.rnn(torch.sin(x), hx)
        return self.head(y).tanh(), 2 * h


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def inputs(steps=T, batch=B):
    return torch.randn(steps, batch, I, dtype=torch.float64, requires_grad=True)


def assert_agree(traced, eager, x, *args):
    results = []
    for module in (eager, traced):
        y, h = module(x, *args)
        leaves = (x, *eager.parameters())
        loss = (y * y).sum() + h.sin().sum()
        results.append((y, h, *torch.autograd.grad(loss, leaves, allow_unused=True)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


def operator_arguments(backend, directions, batch_sizes, grad):
    rows = T * B if batch_sizes is None else int(batch_sizes.sum())
    steps = T if batch_sizes is None else len(batch_sizes)
    shapes = [(rows, I), (directions, B, H), *[(H, I), (H, H), (H,), (H,)] * directions]
    x, h0, *weights = (torch.randn(s, dtype=torch.float64, requires_grad=grad) for s in shapes)
    given = x, batch_sizes, steps, [h0], weights, None
    return *given, *CELL, False, grad, key_of(backend)


@pytest.mark.parametrize("name", ["timed", "integrator"])
def test_the_operator_takes_row_inputs_as_columns_of_x(name):
    """The columns that W_ih multiplies are those before them."""
    cell = known(name).form.cell
    layer = LayerSpec(cell, I if name == "timed" else 0, H, 2, True)
    shapes = [(T * B, layer.features), (2, B, H), *layer.weight_shapes * 2]
    x, h0, *weights = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    given = (x, None, T, [h0], weights, None, cell.text, H, True, 0, False, False, key_of("numba"))
    y, h_n = torch.ops.rnnjit.layer(*given)
    expected = layer_forward(layer, Rows(T, B, T * B), x, (h0,), weights)
    torch.testing.assert_close([y, h_n], [expected[0], *expected[1]], rtol=1e-11, atol=1e-11)


# By torch's own checks, which look at the gradients of tensors that they made.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("batch_sizes", [None, torch.tensor([3, 3, 1])], ids=["dense", "packed"])
@pytest.mark.parametrize("backend", [*BACKENDS, Keeping()], ids=lambda b: b.name)
def test_the_operators_pass_torchs_own_checks(backend, batch_sizes):
    torch.manual_seed(0)
    arguments = operator_arguments(backend, 2, batch_sizes, grad=True)
    torch.library.opcheck(torch.ops.rnnjit.layer.default, arguments)
    x, _, steps, (h0,), weights, *_ = arguments
    with torch.no_grad():
        y, h_n = torch.ops.rnnjit.layer(*arguments)
    x, h0, *weights = (tensor.detach() for tensor in (x, h0, *weights))
    for grads, through in (([torch.ones_like(y)], "y"), ([torch.ones_like(h_n)], "h_n")):
        given = [through == "y", through == "h_n"]
        needs = [True, False, *[True, False, True, True] * 2]
        inputs = (x, batch_sizes, steps, [h0], weights, None)
        torch.library.opcheck(
            torch.ops.rnnjit.layer_backward.default,
            (*inputs, [y, h_n], grads, given, needs, *CELL, arguments[-1]),
        )


def test_the_operators_for_packed_input_pass_torchs_own_checks():
    sizes, data = torch.tensor([3, 3, 1]), torch.randn(0)
    torch.library.opcheck(torch.ops.rnnjit.batch_sizes.default, (sizes, 7, 3))
    torch.library.opcheck(torch.ops.rnnjit.zero_states.default, (data, sizes, 2, [4, 5]))
    found = torch.ops.rnnjit.zero_states(data, sizes, 2, [4, 5])
    torch.testing.assert_close(found, [torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)])


@pytest.mark.parametrize("backend", [*BACKENDS, Keeping()], ids=lambda b: b.name)
def test_the_operator_is_the_layer(backend):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, bidirectional=True, dtype=torch.float64)
    x, h0 = inputs(), torch.randn(2, B, H, dtype=torch.float64, requires_grad=True)
    weights = list(rnn.parameters())
    key = key_of(backend)

    def operator(x, h0):
        rows = x.reshape(T * B, I)
        given = rows, None, T, [h0], weights, None, *CELL
        y, h = torch.ops.rnnjit.layer(*given, False, True, key)
        return y.view(T, B, 2 * H), h

    operator.parameters = rnn.parameters
    assert_agree(operator, rnn, x, h0)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_a_model_traces_as_one_graph_and_agrees_with_eager(backend):
    model = Tagger(num_layers=2, bidirectional=True, batch_first=True)
    traced = torch.compile(
        rnnjit.compile(model, backend=backend), backend="aot_eager", fullgraph=True
    )
    assert_agree(traced, model, inputs())
    assert_agree(traced, model, inputs(), torch.randn(4, T, H, dtype=torch.float64))


def test_a_plain_rnn_does_not_trace_but_its_compiled_form_does():
    model = Tagger()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(inputs())
    torch.compile(rnnjit.compile(model), backend="eager", fullgraph=True)(inputs())


def test_the_graph_has_one_node_a_layer_whatever_the_length():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    model = rnnjit.compile(Tagger(num_layers=3))
    torch.compile(model, backend=keep, fullgraph=True)(inputs(steps=500))
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes]
    assert sum("rnnjit.layer" in name for name in names) == 3
    assert len(names) < 60


@pytest.mark.parametrize("dynamic", [True, None])
def test_other_lengths_and_batches_do_not_compile_anew(dynamic):
    counter = CompileCounterWithBackend("aot_eager")
    model = Tagger(num_layers=2)
    traced = torch.compile(rnnjit.compile(model), backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for steps, batch in ((5, 3), (7, 4), (30, 2), (9, 9), (64, 5)):
        assert_agree(traced, model, inputs(steps, batch))
        counts.append(counter.frame_count)
    settled = counts[0] if dynamic else counts[1]
    assert counts[-1] == settled


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor():
    model = Tagger(num_layers=2)
    traced = torch.compile(rnnjit.compile(model), fullgraph=True)
    assert_agree(traced, model, inputs())


def test_changed_settings_and_weights_are_seen():
    model = Tagger(num_layers=2, dropout=0.5)
    fast = rnnjit.compile(model)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    x = inputs()
    with torch.no_grad():
        assert not torch.equal(traced(x)[0], traced(x)[0])
        fast.rnn.dropout = model.rnn.dropout = 0
        assert torch.equal(traced(x)[0], traced(x)[0])
        model.rnn.weight_hh_l0.data.mul_(2)
        torch.testing.assert_close(traced(x), model(x))
        fast.rnn.mode = model.rnn.mode = "RNN_RELU"
        torch.testing.assert_close(traced(x), model(x))


def test_a_named_backend_that_declines_raises_when_the_graph_runs():
    class Declining(RecomputeBackend):
        def why_not(self, spec, problem):
            return ["T must be 1"] if problem.T > 1 else []

    fast = rnnjit.compile(Tagger(), backend=Declining())
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    with pytest.raises(rnnjit.UnsupportedError, match="T must be 1"):
        traced(inputs())
    traced(inputs(steps=1))


def test_autocast():
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2)
    traced = torch.compile(rnnjit.compile(rnn), backend="aot_eager", fullgraph=True)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = traced(x), rnn(x)
    assert got[0].dtype == expected[0].dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)


def test_transforms_inside_the_graph():
    model = Tagger()
    fast = rnnjit.compile(model)
    x = inputs().detach()
    over_batch = torch.func.vmap(lambda v: fast(v)[0], 1, 1)
    traced = torch.compile(over_batch, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), model(x)[0])
    gradient = torch.func.grad(lambda v: fast(v)[0].square().sum())
    traced = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[0].square().sum(), leaf)
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3), torch.zeros(2, 2, 9), torch.zeros(0, 2, I), torch.zeros(2, 2, I).double()],
    ids=lambda x: str(tuple(x.shape)),
)
def test_bad_input_raises_as_eager(x):
    rnn = nn.RNN(I, H)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        rnn(x)
    traced = torch.compile(rnnjit.compile(rnn), backend="aot_eager")
    with pytest.raises(expected.type, match=r"input "):
        traced(x)


def test_parametrized_weights():
    rnn = parametrizations.weight_norm(nn.RNN(I, H, dtype=torch.float64), "weight_hh_l0")
    traced = torch.compile(rnnjit.compile(rnn), backend="aot_eager", fullgraph=True)
    assert_agree(traced, rnn, inputs())


# PyTorch 2.9's own, of how torch.export.load reads weights.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_export_with_dynamic_sizes(tmp_path):
    model = Tagger(num_layers=2)
    sizes = {"x": {0: torch.export.Dim("T", max=100), 1: torch.export.Dim("B", max=50)}}
    program = torch.export.export(rnnjit.compile(model), (inputs().detach(),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for steps, batch in ((9, 2), (2, 7)):
        x = inputs(steps, batch).detach()
        torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_package_compiled_ahead_of_time(tmp_path):
    model = Tagger(num_layers=2, bidirectional=True)
    sizes = {"x": {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}}
    path = str(tmp_path / "model.pt2")
    with torch.no_grad():
        fast, example = rnnjit.compile(model), (inputs().detach(),)
        program = torch.export.export(fast, example, dynamic_shapes=sizes)
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        package = torch._inductor.aoti_load_package(path)
        for steps, batch in ((5, 3), (9, 2)):
            x = inputs(steps, batch).detach()
            torch.testing.assert_close(package(x), model(x))


def test_a_copy_of_a_module_with_a_backend_object_traces():
    model = Tagger()
    fast = copy.deepcopy(rnnjit.compile(model, backend=RecomputeBackend()))
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    x = inputs().detach()
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit_trace_records_torchs_own_layer():
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2, bidirectional=True)
    fast, example = rnnjit.compile(rnn), torch.randn(T, B, I)
    fast(example)
    recorded = torch.jit.trace(fast, (example,))
    x = torch.randn(2 * T, B, I)
    torch.testing.assert_close(recorded(x), rnn(x))
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(2)
    torch.testing.assert_close(recorded(x), rnn(x))


def test_importing_the_operators_twice_registers_them_once():
    assert torch.ops.rnnjit.layer.default is ops.layer_op._opoverload


WRITES = {
    "add_": lambda y, x: y.add_(x.sum()),
    "relu_": lambda y, x: torch.relu_(y),
    "masked_fill_": lambda y, x: y.masked_fill_(y > 0.3, 0.0),
}


@pytest.mark.parametrize(
    ("make", "write"), list(zip([nn.RNN, nn.LSTM, nn.GRU], WRITES, strict=True))
)
def test_a_model_may_write_to_the_results(make, write):
    torch._dynamo.reset()
    torch.manual_seed(0)
    rnn = make(3, 5, dtype=torch.float64)
    fast = rnnjit.compile(rnn)
    x = torch.randn(6, 2, 3, dtype=torch.float64)

    def run(module):
        y, last = module(x)
        h_n = last[0] if isinstance(last, tuple) else last
        return WRITES[write](y, x).square().sum() + h_n.mul_(2).sum()

    traced = torch.compile(lambda: run(fast), backend="aot_eager", fullgraph=True)
    for found, wanted in zip(
        torch.autograd.grad(traced(), list(rnn.parameters())),
        torch.autograd.grad(run(rnn), list(rnn.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
