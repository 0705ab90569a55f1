"""Protects artifacts in Python: the files, loading them, and clear refusals."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from artifact_programs import assert_as_exact_as_eager, export, make_rnn
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.artifact import manifest as files
from rnnjit.artifact.weights import layout, pack
from rnnjit.cells import LSTM

INPUTS = {
    "dense": lambda: torch.randn(7, 5, 19),
    "one-step": lambda: torch.randn(1, 1, 19),
    "unbatched": lambda: torch.randn(7, 19),
    "no-rows": lambda: torch.randn(7, 0, 19),
    "many-rows": lambda: torch.randn(3, 70, 19),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A stack, its artifact's directory, and the artifact loaded; none is changed."""
    rnn = make_rnn(num_layers=2, bidirectional=True)
    place = export(rnn, tmp_path_factory.mktemp("shared"))
    return rnn, place, rnnjit.load_artifact(place)


@pytest.fixture
def copied(shared, tmp_path):
    """A copy of the artifact, to be damaged."""
    place = tmp_path / "artifact"
    place.mkdir()
    for file in shared[1].iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("kind", INPUTS)
def test_it_computes_what_eager_does(shared, kind, given):
    rnn, _, artifact = shared
    torch.manual_seed(0)
    x = INPUTS[kind]()
    hx = torch.randn(4, *x.shape[1:-1], 45) if given else None
    found = artifact(x, hx)
    if x.numel():
        assert_as_exact_as_eager(rnn, found, x, hx)
    with torch.no_grad():
        for tensor, same in zip(found, rnnjit.compile(rnn, backend="numba")(x, hx), strict=True):
            torch.testing.assert_close(tensor, same, rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [(7, 4, 4, 1), (2, 5, 1)], ids=str)
def test_packed_sequences(shared, lengths):
    rnn, _, artifact = shared
    padded = torch.randn(max(lengths), len(lengths), 19)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    hx = torch.randn(4, len(lengths), 45)
    y, _ = found = artifact(packed, hx)
    assert_as_exact_as_eager(rnn, found, packed, hx)
    assert torch.equal(y.unsorted_indices, packed.unsorted_indices)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_first": True}, marks=pytest.mark.full),
        {"nonlinearity": "relu", "bias": False},
        pytest.param({"num_layers": 4}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_configurations(options, tmp_path):
    rnn = make_rnn(torch.float64, **options)
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
    "scratch": (lambda m: m["machine"].update(scratch_fixed="much"), "much"),
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
    with pytest.raises(TypeError, match="LSTM"):
        rnnjit.export_artifact(nn.LSTM(2, 3), tmp_path / "a")
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
