"""Protects graphs of packed input, resets and all states: export, what breaks a graph, errors."""

import copy
import shutil

import pytest
import torch
from eager_pair import CLOSE, H, I
from layer_kinds import KINDS, first_of, states
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit

# Dynamo and Inductor warn of torch's own deprecations when they are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
T, N, B = (Dim(name, min=2) for name in "TNB")
LENGTHS = [9, 7, 3], [11, 4], [5, 5, 5, 5, 1]
SHAPES = (9, 3), (4, 7), (12, 2)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


class Packs(nn.Module):
    """Takes the parts of a PackedSequence."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = make(I, H, 2, bidirectional=True, dtype=torch.float64)

    def forward(self, data, sizes, order=None, back=None):
        y, last = self.rnn(PackedSequence(data, sizes, order, back))
        return y.data, *states(last)


class Resets(Packs):
    """Returns all states, too."""

    def forward(self, x, reset):
        y, last, layers = self.rnn(x, reset=reset, return_states=True)
        return y, *states(last), *layers[0], *layers[1]


def packed(lengths, order="sorted"):
    x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64)
    lengths = sorted(lengths, reverse=order == "sorted")
    return pack_padded_sequence(x, lengths, enforce_sorted=order == "sorted")


def calls(form):
    """The arguments of calls of different sizes."""
    if form == "resets":
        return [
            (torch.randn(*shape, I, dtype=torch.float64), torch.rand(shape) < 0.4)
            for shape in SHAPES
        ]
    found = [packed(lengths, form) for lengths in LENGTHS]
    return [tuple(part for part in each if part is not None) for each in found]


def exported(make, form, strict=False):
    """A model, and a program of it for any sizes above one, without gradients."""
    model = Resets(make) if form == "resets" else Packs(make)
    sizes = ({0: T, 1: B}, {0: T, 1: B}) if form == "resets" else ({0: N}, {0: T}, {0: B}, {0: B})
    example, fast = calls(form)[0], rnnjit.compile(copy.deepcopy(model))
    with torch.no_grad():
        shapes = sizes[: len(example)]
        program = torch.export.export(fast, example, dynamic_shapes=shapes, strict=strict)
    return (fast if form == "resets" else model), program


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # by torch.export.load
@pytest.mark.parametrize("kind", first_of("LSTM"))
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("form", ["sorted", "unsorted", "resets"])
def test_export_with_dynamic_sizes(form, strict, kind, tmp_path):
    model, program = exported(KINDS[kind], form, strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for given in calls(form):
        torch.testing.assert_close(loaded(*given), model(*given), **CLOSE)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("form", ["sorted", "resets"])
def test_a_package_compiled_ahead_of_time(form, tmp_path):
    model, program = exported(nn.LSTM, form)
    path = str(tmp_path / "model.pt2")
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        package = torch._inductor.aoti_load_package(path)
        for given in calls(form):
            torch.testing.assert_close(tuple(package(*given)), model(*given), **CLOSE)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_onnx_has_no_such_operators(tmp_path):
    pytest.importorskip("onnxscript")
    fast = rnnjit.compile(Resets(nn.GRU)).eval()
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"rnnjit.layer"):
        torch.onnx.export(
            fast, calls("resets")[0], tmp_path / "model.onnx", dynamo=True, verbose=False
        )


class Gradient(nn.Module):
    """The gradient of a sum by x, taken by torch.func."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, *others):
        def loss(x):
            return sum(each.square().sum() for each in self.model(x, *others))

        return torch.func.grad(loss)(x)


# Dynamo itself looks at .grad where it goes on behind a break of the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("autocast", "under autocast torch's own layer runs"),
        ("transform", "a torch.func transform is active"),
        ("assigned", "what its forward uses was assigned"),
    ],
)
def test_where_torchs_own_operators_run_the_graph_breaks_and_says_why(why, reason):
    fast, given = rnnjit.compile(Packs(nn.GRU)), calls("sorted")[0]
    if why == "transform":
        fast = Gradient(fast)
    if why == "assigned":
        fast.rnn._flat_weights = [2 * weight for weight in fast.rnn.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"), torch.no_grad():
        traced = torch.compile(fast, backend="aot_eager")
        torch.testing.assert_close(traced(*given), fast(*given))
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
            torch.compile(fast, backend="aot_eager", fullgraph=True)(*given)
        with pytest.raises(RuntimeError, match=f"torch.export cannot trace .*{reason}"):
            torch.export.export(fast, given)


SEQUENCE = packed([4, 2, 1])
SIZES = SEQUENCE.batch_sizes
BAD = {
    "growing": ({"batch_sizes": torch.tensor([1, 3, 2, 1])}, None, RuntimeError, "must never grow"),
    "negative": ({"batch_sizes": torch.tensor([3, 3, -1])}, None, RuntimeError, "nor be negative"),
    "beyond": ({"batch_sizes": torch.tensor([3, 3, 3])}, None, RuntimeError, "adds up to 9 rows"),
    "less": ({"batch_sizes": SIZES[:3]}, None, RuntimeError, "must have no further rows"),
    "kind": ({"batch_sizes": SIZES.int()}, None, RuntimeError, "must be 1-D and torch.int64"),
    "no-steps": ({"batch_sizes": SIZES[:0]}, None, IndexError, "without time steps"),
    "hx": ({}, torch.zeros(4, 2, H), RuntimeError, "begins with 3 sequences, but hx .* has 2"),
    "hx-rank": ({}, torch.zeros(3, H), RuntimeError, "hx must"),
    "order": ({"unsorted_indices": torch.tensor([0, 1, 3])}, None, RuntimeError, "out of"),
    "features": ({"data": torch.zeros(7, 9)}, None, RuntimeError, "input_size=2 features"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_packed_input_is_refused_when_the_graph_runs(what):
    changes, hx, error, said = BAD[what]
    fast = rnnjit.compile(nn.GRU(I, H, 2, bidirectional=True, dtype=torch.float64))
    hx = None if hx is None else hx.double()
    given = SEQUENCE._replace(**changes)
    if what == "features":
        given = given._replace(data=given.data.double())
    traced = torch.compile(fast, backend="eager", dynamic=True)
    traced(SEQUENCE)
    with pytest.raises(error, match=said):
        traced(given, hx)
    torch.testing.assert_close(traced(SEQUENCE), fast(SEQUENCE), **CLOSE)


class Restarting(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnnjit.compile(nn.GRU(3, 5, dtype=torch.float64))

    def forward(self, x, reset, to):
        return self.rnn(x, reset=reset, reset_to=to)


@pytest.mark.parametrize("layers", [(), (1,)], ids=["one vector", "one for each layer"])
def test_no_size_is_bound_to_that_of_a_state_to_start_from(layers):
    module, T = Restarting(), Dim("T", min=2)

    def given(steps):
        x = torch.randn(steps, 4, 3, dtype=torch.float64)
        to = torch.arange(5, dtype=torch.float64).expand(*layers, 5)
        return x, torch.arange(4 * steps).view(steps, 4) % 3 == 0, to

    dynamic = ({0: T}, {0: T}, None)
    program = torch.export.export(module, given(7), dynamic_shapes=dynamic).module()
    for steps in (5, 9):  # as many as there are hidden units, too
        call = given(steps)
        torch.testing.assert_close(program(*call), module(*call), **CLOSE)
