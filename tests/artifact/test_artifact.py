"""Protects artifacts in Python: the files, loading them, and clear refusals."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from artifact_programs import (
    assert_as_exact_as_eager,
    export,
    flat,
    make_rnn,
    out_features,
    random_states,
    state_shapes,
)
from covered import in_full
from program_steps import Steps, filled
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.artifact import manifest as files
from rnnjit.artifact.weights import layout, pack
from rnnjit.ir import LSTM

INPUTS = {
    "dense": lambda: torch.randn(7, 5, 19),
    "one-step": lambda: torch.randn(1, 1, 19),
    "unbatched": lambda: torch.randn(7, 19),
    "no-rows": lambda: torch.randn(7, 0, 19),
    "many-rows": lambda: torch.randn(3, 75, 19),
    "many-steps": lambda: torch.randn(70, 2, 19),
}
BOTH = {"num_layers": 2, "bidirectional": True}
STACKS = {
    "rnn": (nn.RNN, torch.float32, BOTH),
    "lstm-projected": (nn.LSTM, torch.float32, {**BOTH, "proj_size": 10}),
    "gru": (nn.GRU, torch.float64, {**BOTH, "bias": False}),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A stack, its artifact's directory, and the artifact loaded; none is changed."""
    rnn = make_rnn(num_layers=2, bidirectional=True)
    place = export(rnn, tmp_path_factory.mktemp("shared"))
    return rnn, place, rnnjit.load_artifact(place)


@pytest.fixture(scope="module", params=STACKS)
def stack(request, shared, tmp_path_factory):
    """A stack of each cell, and its artifact loaded."""
    kind, dtype, options = STACKS[request.param]
    if kind is nn.RNN:
        return shared[0], shared[2]
    rnn = make_rnn(dtype, kind, **options)
    return rnn, rnnjit.load_artifact(export(rnn, tmp_path_factory.mktemp(request.param)))


@pytest.fixture
def copied(shared, tmp_path):
    """A copy of the artifact, to be damaged."""
    place = tmp_path / "artifact"
    place.mkdir()
    for file in shared[1].iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def assert_same_bits(found, expected):
    for tensor, same in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(tensor, same, rtol=0, atol=0)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("kind", INPUTS)
def test_it_computes_what_eager_does(stack, kind, given):
    rnn, artifact = stack
    torch.manual_seed(0)
    x = INPUTS[kind]().to(rnn.weight_ih_l0.dtype)
    hx = random_states(rnn, *x.shape[1:-1]) if given else None
    found = artifact(x, hx)
    if x.numel():
        assert_as_exact_as_eager(rnn, found, x, hx)
    with torch.no_grad():
        assert_same_bits(found, rnnjit.compile(rnn, backend="numba")(x, hx))


@pytest.mark.parametrize("lengths", [(7, 4, 4, 1), (2, 5, 1)], ids=str)
def test_packed_sequences(stack, lengths):
    rnn, artifact = stack
    padded = torch.randn(max(lengths), len(lengths), 19).to(rnn.weight_ih_l0.dtype)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    hx = random_states(rnn, len(lengths))
    y, _ = found = artifact(packed, hx)
    assert_as_exact_as_eager(rnn, found, packed, hx)
    assert torch.equal(y.unsorted_indices, packed.unsorted_indices)


STREAMS = {
    "lstm-projected": (nn.LSTM, torch.float64, {"num_layers": 2, "proj_size": 10}),
    "gru": (nn.GRU, torch.float32, {"num_layers": 3, "bias": False}),
    "lstm": (nn.LSTM, torch.float32, {}),
    "rnn": (nn.RNN, torch.float32, {"num_layers": 2}),
}


@pytest.fixture(
    scope="module",
    params=[
        "lstm-projected",
        "gru",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("lstm", "rnn")),
    ],
)
def stream(request, tmp_path_factory):
    """A stack of one direction, its artifact loaded, its functions for steps, and its weights."""
    kind, dtype, options = STREAMS[request.param]
    rnn = make_rnn(dtype, kind, **options)
    place = export(rnn, tmp_path_factory.mktemp("stream"))
    steps = Steps((place / "rnn.o").read_bytes(), "rnn", len(state_shapes(rnn, 1)))
    weights = torch.frombuffer(bytearray((place / "weights.bin").read_bytes()), dtype=torch.uint8)
    return rnn, rnnjit.load_artifact(place), steps, weights


@pytest.mark.parametrize("B", [0, 1, 4, 75])
def test_steps_compute_what_the_whole_sequence_does(stream, B):
    rnn, artifact, steps, weights = stream
    torch.manual_seed(0)
    x = torch.randn(6, B, 19, dtype=rnn.weight_ih_l0.dtype)
    hx = random_states(rnn, B)
    before = hx if isinstance(hx, tuple) else (hx,)
    y, states = steps.run(x, before, out_features(rnn), weights)
    found = y.view(6, B, out_features(rnn)), states if len(states) > 1 else states[0]
    assert_same_bits(found, artifact(x, hx))
    if B:
        assert_as_exact_as_eager(rnn, found, x, hx)


def test_a_step_refuses_what_it_cannot_take(stream):
    """Fewer than no streams, and prepared weights that are not aligned."""
    rnn, _, steps, weights = stream
    room = filled((steps.prepared_bytes + 64,), torch.uint8)
    assert steps.prepare(weights.data_ptr(), room.data_ptr() + 8) == 1
    assert room.eq(255).all()
    assert steps.prepare(weights.data_ptr(), room.data_ptr()) == 0
    y, scratch = filled((1, 45), torch.float64), filled((steps.scratch_bytes(1),), torch.uint8)
    tensors = [torch.zeros(1, 19, dtype=torch.float64)]
    tensors += [torch.zeros(shape, dtype=torch.float64) for shape in state_shapes(rnn, 1)]
    addresses = [tensor.data_ptr() for tensor in (*tensors, y, scratch)]
    assert steps.step(-1, room.data_ptr(), *addresses) == 1
    assert steps.step(1, room.data_ptr() + 8, *addresses) == 1
    assert y.isnan().all()
    assert scratch.eq(255).all()
    assert not any(tensor.any() for tensor in tensors)


def test_a_network_of_two_directions_has_no_steps(shared):
    _, place, _ = shared
    header = (place / "rnn.h").read_text()
    assert "no function for a step" in header
    assert "rnn_step" not in header
    assert b"rnn_step" not in (place / "rnn.o").read_bytes()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
        *in_full([nn.RNN, nn.LSTM, nn.GRU], [{"batch_first": True}, {"num_layers": 4}]),
        *in_full([nn.LSTM], [{"proj_size": 44}, {"proj_size": 1, "bias": False}]),
    ],
    ids=str,
)
def test_configurations(kind, options, tmp_path):
    rnn = make_rnn(torch.float64, kind, **options)
    artifact = rnnjit.load_artifact(export(rnn, tmp_path))
    x = torch.randn(6, 9, 19, dtype=torch.float64)
    assert_as_exact_as_eager(rnn, artifact(x), x)


@pytest.mark.parametrize("target", ["x86-64-v3", pytest.param("x86-64-v4", marks=pytest.mark.full)])
def test_levels_of_x86_run_where_the_processor_has_them(target, tmp_path):
    rnn = make_rnn(num_layers=2, bidirectional=True)
    place = export(rnn, tmp_path, target=target)
    assert files.read(place).machine["cpu"] == target
    x = torch.randn(7, 9, 19)
    try:
        artifact = rnnjit.load_artifact(place)
    except rnnjit.ArtifactError as error:
        assert "cannot run here" in str(error)  # noqa: PT017 - which of the two depends on the machine
        return
    assert_as_exact_as_eager(rnn, artifact(x), x)


def test_nan_and_infinity_come_out_as_eager_s(shared):
    rnn, _, artifact = shared
    x = torch.randn(5, 4, 19)
    x[1, 0, 3], x[2, 1, 0], x[0, 2, 5] = float("nan"), float("inf"), -float("inf")
    assert_as_exact_as_eager(rnn, artifact(x), x)


def test_weights_lie_where_the_manifest_says(shared):
    rnn, place, artifact = shared
    content = (place / "weights.bin").read_bytes()
    for weight in artifact.manifest.weights:
        expected = dict(rnn.named_parameters())[weight.name]
        assert weight.offset % 64 == 0
        found = torch.frombuffer(bytearray(content), dtype=torch.float32, offset=weight.offset)
        assert torch.equal(found[: expected.numel()].view(weight.shape), expected)
    spec = rnnjit.RNNSpec(19, 45, 2, bidirectional=True)
    assert len(content) == layout(spec, 4).size == len(pack(spec, list(rnn.parameters())))


def test_the_manifest_says_what_it_is(shared):
    _, place, artifact = shared
    found = json.loads((place / "manifest.json").read_text())
    assert found["target"] == "native"
    assert found["dtype"] == "float32"
    assert found["spec"]["hidden_size"] == 45
    assert found["shapes"]["x"] == "[T, B, 19]"
    assert {"rnnjit", "torch", "llvmlite"} <= found["versions"].keys()
    assert {file.name for file in place.iterdir()} == {
        *found["files"],
        "manifest.json",
        "manifest.sha256",
    }
    assert "native" in repr(artifact)
    done = subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=place, check=False)
    assert done.returncode == 0


def test_loading_and_calling_imports_no_compiler(shared):
    code = (
        "import sys, torch, rnnjit; from torch import nn\n"
        "nn.RNN.forward = torch.rnn_tanh = None\n"
        f"print(rnnjit.load_artifact({str(shared[1])!r})(torch.zeros(2, 3, 19))[0].shape)\n"
        "print([name for name in ('numba', 'tvm', 'torch._inductor') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "torch.Size([2, 3, 90])\n[]\n"


def test_threads_may_call_it_at_the_same_time(shared):
    _, _, artifact = shared
    x = torch.randn(40, 6, 19)
    expected, found = artifact(x)[0], [None] * 8

    def work(index):
        for _ in range(20):
            found[index] = artifact(x)[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, expected) for each in found)


def test_a_gradient_is_not_promised(shared):
    _, _, artifact = shared
    x = torch.randn(2, 3, 19, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no backward pass.*torch\.no_grad"):
        artifact(x)
    with torch.no_grad():
        assert not artifact(x)[0].requires_grad


BAD_CALLS = {
    "features": (lambda: (torch.randn(2, 3, 18),), RuntimeError, "18"),
    "rank": (lambda: (torch.randn(2),), ValueError, "1-D"),
    "dtype": (lambda: (torch.randn(2, 3, 19).double(),), ValueError, "float64"),
    "state": (lambda: (torch.randn(2, 3, 19), torch.randn(4, 2, 45)), RuntimeError, "hx"),
    "kind": (lambda: ([1.0],), AttributeError, "input"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_as_eager_refuses_it(shared, name):
    rnn, _, artifact = shared
    arguments, error, said = BAD_CALLS[name]
    with pytest.raises(error):
        rnn(*arguments())
    with pytest.raises(error, match=said):
        artifact(*arguments())
    assert artifact(torch.zeros(1, 1, 19))[0].shape == (1, 1, 90)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "weights.bin", "rnn.o"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer", "flipped"])
def test_a_damaged_artifact_is_refused(copied, name, damage):
    file = copied / name
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    changed = {"empty": b"", "cut": content[:-1], "longer": content + b"\0", "flipped": flipped}
    file.unlink()
    if damage != "missing":
        file.write_bytes(changed[damage])
    with pytest.raises(rnnjit.ArtifactError, match=r"damaged|cannot be read"):
        rnnjit.load_artifact(copied)


def _rewrite(place, change):
    """Change a manifest and its checksum with it, as whoever means harm or errs would."""
    data = json.loads((place / "manifest.json").read_text())
    change(data)
    content = json.dumps(data).encode()
    (place / "manifest.json").write_bytes(content)
    (place / "manifest.sha256").write_bytes(files.checksum_line(content))


FOREIGN = {
    "format": (lambda m: m.update(format=99), "format 99"),
    "field": (lambda m: m.update(extra=1), "extra"),
    "no-spec": (lambda m: m.pop("spec"), "spec"),
    "size": (lambda m: m["spec"].update(hidden_size=0), "hidden_size"),
    "other-size": (lambda m: m["spec"].update(hidden_size=46), "weights"),
    "text": (lambda m: m["spec"].update(hidden_size="45"), "hidden_size"),
    "cell": (
        lambda m: m["spec"].update(cell=m["spec"]["cell"].replace("tanh", "sine")),
        r"manifest.json makes no sense: unknown operation 'sine': expected one of .*tanh",
    ),
    "no-cell": (lambda m: m["spec"].update(cell="tanh"), "makes no sense: .* got 'tanh'"),
    "other-cell": (lambda m: m["spec"].update(cell=LSTM.text), "weights"),
    "outside": (lambda m: m["files"].update({"../rnn.o": m["files"]["rnn.o"]}), "files"),
    "backend": (lambda m: m.update(backend="none-such"), "not installed"),
    "processor": (lambda m: m["machine"].update(triple="aarch64-unknown-linux-gnu"), "aarch64"),
    "system": (lambda m: m["machine"].update(triple="x86_64-pc-windows-msvc"), "windows|x86_64"),
    "feature": (lambda m: m["machine"].update(requires="avx9"), "avx9"),
    "machine": (lambda m: m["machine"].pop("triple"), "triple"),
    "symbol": (lambda m: m.update(name="other"), "other"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_artifact_is_refused(copied, what):
    change, said = FOREIGN[what]
    _rewrite(copied, change)
    with pytest.raises(rnnjit.ArtifactError, match=said):
        rnnjit.load_artifact(copied)


@pytest.mark.full
def test_artifacts_for_other_processors_are_refused_by_name(tmp_path):
    place = export(make_rnn(), tmp_path, target="riscv64")
    with pytest.raises(rnnjit.ArtifactError, match="it is for the processor riscv64"):
        rnnjit.load_artifact(place)


@pytest.mark.parametrize(
    "kind", ["text", "half", pytest.param("aarch64", marks=pytest.mark.full), "wasm32"]
)
def test_an_object_file_of_another_kind_is_refused(shared, copied, kind, tmp_path):
    own = (copied / "rnn.o").read_bytes()
    if kind in ("text", "half"):
        content = b"no object file" if kind == "text" else own[: len(own) // 2]
    else:
        other = export(shared[0], tmp_path / kind, target=kind)
        content = (other / "rnn.o").read_bytes()

    def change(data):
        (copied / "rnn.o").write_bytes(content)
        data["files"]["rnn.o"] = {"bytes": len(content), "sha256": files.digest(content)}

    _rewrite(copied, change)
    with pytest.raises(rnnjit.ArtifactError, match="not an object file for this machine"):
        rnnjit.load_artifact(copied)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(TypeError, match=r"nn\.GRU, got Linear"):
        rnnjit.export_artifact(nn.Linear(2, 3), tmp_path / "a")
    with pytest.raises(TypeError, match="LSTM"):  # the CUDA source is that of nn.RNN alone
        rnnjit.export_artifact(nn.LSTM(2, 3), tmp_path / "a", target="cuda")
    with pytest.raises(ValueError, match="bfloat16"):
        rnnjit.export_artifact(nn.RNN(2, 3).bfloat16(), tmp_path / "a")
    with pytest.raises(ValueError, match=r"target must be one of .*native.*, got 'z80'"):
        rnnjit.export_artifact(nn.RNN(2, 3), tmp_path / "a", target="z80")
    with pytest.raises(ValueError, match="C identifier"):
        rnnjit.export_artifact(nn.RNN(2, 3), tmp_path / "a", name="../rnn")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_never_overwritten(shared, tmp_path):
    rnn = shared[0]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        rnnjit.export_artifact(rnn, tmp_path / "file", overwrite=True)
    with pytest.raises(FileExistsError, match="holds other files"):
        rnnjit.export_artifact(rnn, tmp_path, overwrite=True)
    place = export(rnn, tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export(rnn, tmp_path)
    export(rnn, tmp_path, overwrite=True, name="other")
    assert {"other.o", "other.h"} <= {file.name for file in place.iterdir()}
    assert not (place / "rnn.o").exists()
    assert {file.name for file in tmp_path.iterdir()} == {"artifact", "file"}


def test_a_compiled_module_is_exported_as_it_is_now(tmp_path):
    module = rnnjit.compile(make_rnn(num_layers=2, dropout=0.5), backend="eager")
    with torch.no_grad():
        module.weight_hh_l1.mul_(0.5)
    artifact = rnnjit.load_artifact(export(module, tmp_path))
    x = torch.randn(4, 3, 19)
    with torch.no_grad():
        torch.testing.assert_close(artifact(x)[0], module(x)[0])


def test_an_artifact_called_in_a_function_that_torch_compiles(tmp_path):
    """Traced frame by frame, it would give a kernel the address of memory that is free."""
    rnn, x = nn.RNN(3, 4), torch.randn(5, 2, 3)
    artifact = rnnjit.load_artifact(rnnjit.export_artifact(rnn, tmp_path / "rnn"))
    traced = torch.compile(lambda x: artifact(x)[0] + 1, backend="eager")
    with torch.no_grad():
        for _ in range(20):
            torch.testing.assert_close(traced(x), rnn(x)[0] + 1)
