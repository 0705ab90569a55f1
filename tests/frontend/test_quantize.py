"""Protects rnnjit.quantize: modules of int8 matrices, in all that is done with modules."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.quantization import quantize_matrix
from rnnjit.testing import RecomputeBackend

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),  # of eager's
    pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated"),
]
T, B, I, H = 5, 3, 6, 9
LAYERS = {
    "rnn": lambda: nn.RNN(I, H, nonlinearity="relu"),
    "lstm": lambda: nn.LSTM(I, H, 2, bidirectional=True, proj_size=4, batch_first=True),
    "gru": lambda: nn.GRU(I, H, 2, bias=False),
}
CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
FLOATS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.fixture(params=LAYERS)
def pair(request):
    torch.manual_seed(0)
    module = LAYERS[request.param]()
    return module, rnnjit.quantize(module, backend="eager")


def first(result):
    return result[0] if isinstance(result, tuple) else result


def rounded(module):
    """The float module with the matrices that the int8 ones stand for."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "weight" in name:
                q = quantize_matrix(weight)
                weight.copy_(q.values * q.scale[:, None])
    return other


def test_the_results_are_those_of_the_rounded_matrices(pair):
    module, quantized = pair
    x = torch.randn(T, B, I)
    y, h_n = quantized(x)
    expected, h = rounded(module)(x)
    # Rows of x and h are rounded to 8 bits, too.
    assert (y - expected).abs().max() < 0.02
    assert first(h_n).shape == first(h).shape
    assert y.stride() == expected.stride()
    assert isinstance(quantized, type(module))
    assert repr(quantized) == f"Quantized{module!r}"


def test_matrices_are_int8_buffers_and_no_result_has_a_gradient(pair):
    module, quantized = pair
    state = quantized.state_dict()
    for name, weight in module.named_parameters():
        if "weight" not in name:
            assert torch.equal(state[name], weight)
            continue
        q = quantize_matrix(weight)
        assert torch.equal(state[name], q.values)
        assert state[name].dtype is torch.int8
        assert torch.equal(state[f"{name}_scale"], q.scale)
        assert torch.equal(state[f"{name}_sum"], q.sums)
    assert not any("weight" in name for name, _ in quantized.named_parameters())
    x = torch.randn(T, B, I, requires_grad=True)
    for _ in range(2):
        y, h_n = quantized(x)
        assert not y.requires_grad
        assert not first(h_n).requires_grad
    assert module.weight_ih_l0.dtype is torch.float32
    assert module.weight_ih_l0.requires_grad


def test_copies_and_files_give_the_same_results(pair):
    module, quantized = pair
    x, kept = torch.randn(T, B, I), io.BytesIO()
    y = quantized(x)[0]
    torch.save(quantized, kept)
    kept.seek(0)
    fresh = rnnjit.quantize(copy.deepcopy(module).apply(lambda m: m.reset_parameters()))
    fresh.load_state_dict(quantized.state_dict())
    for other in (
        copy.deepcopy(quantized),
        pickle.loads(pickle.dumps(quantized)),
        torch.load(kept, weights_only=False),
        rnnjit.compile(quantized, backend="eager"),
        rnnjit.quantize(quantized, backend="eager"),
        rnnjit.quantize(rnnjit.compile(module), backend="eager"),
        quantized.to("cpu").float(),
    ):
        other.backend = "eager"
        assert torch.equal(other(x)[0], y)
    fresh.backend = "eager"
    assert torch.equal(fresh(x)[0], y)


def test_a_float_state_is_refused(pair):
    module, quantized = pair
    with pytest.raises(RuntimeError, match=r"weight_ih_l0 must be torch\.int8 in a quant"):
        quantized.load_state_dict(module.state_dict(), strict=False)


def test_packed_resets_and_all_states(pair):
    module, quantized = pair
    x = torch.randn(B, T, I) if module.batch_first else torch.randn(T, B, I)
    packed = pack_padded_sequence(x, [T, T - 1, 2], batch_first=module.batch_first)
    y, _ = quantized(packed)
    alone, _ = quantized(x[:1, :T] if module.batch_first else x[:, :1])
    starts = packed.batch_sizes.cumsum(0) - packed.batch_sizes
    assert torch.allclose(y.data[starts], alone.squeeze(0 if module.batch_first else 1), atol=1e-6)
    *_, states = quantized(x, return_states=True)
    assert torch.allclose(states[-1][0], quantized(x)[0], atol=1e-6)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[(slice(None), 2) if module.batch_first else 2] = True
    cut, _ = quantized(x, reset=mask)
    end = quantized(x[:, 2:] if module.batch_first else x[2:])[0]
    found = cut[:, 2:] if module.batch_first else cut[2:]
    assert torch.allclose(found, end, atol=1e-6)


class Without(RecomputeBackend):
    quantized = False


def test_streams_and_tools():
    torch.manual_seed(0)
    quantized = rnnjit.quantize(nn.GRU(I, H, 2), backend="eager")
    x = torch.randn(T, B, I)
    stream = rnnjit.Stream(quantized, B)
    assert torch.equal(torch.stack([stream.step(frame) for frame in x]), quantized(x)[0])
    assert rnnjit.explain(quantized, x).calls[0].chosen == "eager"
    other = rnnjit.quantize(nn.GRU(I, H), backend=Without())
    with pytest.raises(rnnjit.UnsupportedError, match="layers of int8 matrices"):
        other(x)
    with pytest.raises(ValueError, match="float matrices"):
        rnnjit.export_artifact(quantized, "unused")
    with pytest.raises(ValueError, match="int8"):
        rnnjit.compare(quantized, x)
    with pytest.raises(ValueError, match="int8"):
        rnnjit.gradient_flow(quantized, x)
    with pytest.raises(TypeError, match="script"):
        torch.jit.script(quantized)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_steps_of_layers(kind):
    torch.manual_seed(0)
    layer, cell = FLOATS[kind](I, H), CELLS[kind](I, H)
    cell.load_state_dict({n.removesuffix("_l0"): w for n, w in layer.state_dict().items()})
    quantized = rnnjit.quantize(cell, backend="eager")
    assert quantized.weight_hh.dtype is torch.int8
    x, h = torch.randn(T, B, I), None
    for frame in x:
        h = quantized(frame, h)
    y, _h_n = rnnjit.quantize(layer, backend="eager")(x)
    assert torch.allclose(first(h), y[-1], atol=1e-6)
    assert not first(h).requires_grad
    assert torch.allclose(first(quantized(x[0, 0])), y[0, 0], atol=1e-6)


def test_autocast_changes_nothing(pair):
    _, quantized = pair
    x = torch.randn(T, B, I).bfloat16()
    y = quantized(x.float())[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = quantized(x)[0]
        assert rnnjit.explain(quantized, x).calls[0].chosen == "eager"
        with torch.no_grad():
            assert torch.equal(quantized(x)[0], y)
    assert found.dtype is torch.float32
    assert torch.equal(found, y)
    with pytest.raises(ValueError, match=r"input must be torch\.float32.*got torch\.bfloat16"):
        quantized(x)
    with pytest.raises(
        RuntimeError, match=r"torch\.float32 in a quantized module, got torch.float"
    ):
        copy.deepcopy(quantized).double()(x.double())


def test_dropout_is_on_in_training_mode():
    torch.manual_seed(0)
    quantized = rnnjit.quantize(nn.LSTM(I, H, 2, dropout=0.5), backend="eager")
    x = torch.randn(T, B, I)
    still = quantized.eval()(x)[0]
    assert torch.equal(quantized(x)[0], still)
    assert not torch.equal(quantized.train()(x)[0], still)


def test_torch_compile_traces_it_and_func_transforms_it(pair):
    _, quantized = pair
    x = torch.randn(T, B, I)
    y = quantized(x)[0]
    traced = torch.compile(quantized, fullgraph=True, backend="eager")
    assert torch.equal(traced(x)[0], y)
    several = torch.func.vmap(lambda x: quantized(x)[0], in_dims=0)(torch.stack([x, 2 * x]))
    assert torch.allclose(several[0], y, atol=1e-6)


def test_what_cannot_be_quantized_is_named():
    half = nn.ModuleDict({"rnn": nn.GRU(2, 3).half()})
    with pytest.raises(ValueError, match=r"rnn\.weight_ih_l0 must be torch\.float32.*float16"):
        rnnjit.quantize(half)
    bad = nn.GRU(2, 3)
    nn.init.constant_(bad.weight_hh_l0, torch.inf)
    with pytest.raises(ValueError, match="weight_hh_l0: a matrix to quantize must have finite"):
        rnnjit.quantize(bad)
    with pytest.raises(ValueError, match="compile"):
        rnnjit.quantize(nn.Linear(2, 3))
    made = parametrizations.weight_norm(nn.GRU(2, 3), "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is no Parameter"):
        rnnjit.quantize(made)
    with pytest.warns(rnnjit.RNNJitWarning, match=r"left in float32: .*at '0'"):
        model = rnnjit.quantize(nn.Sequential(made, nn.GRU(3, 3)), backend="eager")
    assert model[1].weight_ih_l0.dtype is torch.int8
